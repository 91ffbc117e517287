//! What the tree of a text is, where the language leaves room for doubt: precedence, juxtaposition
//! and words that are keywords in some places only.

use weft_lang::ast::*;
use weft_lang::diag;
use weft_lang::parse_file;
use weft_lang::source::SourceMap;

fn parse(text: &str) -> File {
    let mut map = SourceMap::new();
    let (file, diags) = parse_file(&mut map, "test.model", text);
    assert!(diags.is_empty(), "{}", diag::render_all(&map, &diags, false));
    file
}

fn members(text: &str) -> Vec<Member> {
    match parse(&format!("weft 1\nmodel M {{\n{text}\n}}\n")).items.remove(0) {
        Item::Model(model) => model.members,
        item => panic!("not a model: {item:?}"),
    }
}

/// An expression with every operator in parentheses.
fn shown(expr: &Expr) -> String {
    let call = |call: &Call| {
        let args: Vec<String> = call.args.iter().map(|arg| shown(&arg.value)).collect();
        format!("{}({})", call.callee, args.join(", "))
    };
    let list = |items: &[Expr]| items.iter().map(shown).collect::<Vec<_>>().join(", ");
    match &expr.kind {
        ExprKind::Number(value) => value.to_string(),
        ExprKind::Str(text) => format!("{text:?}"),
        ExprKind::Bool(value) => value.to_string(),
        ExprKind::None => "none".to_string(),
        ExprKind::Path(path) => path.to_string(),
        ExprKind::Call(inner) => call(inner),
        ExprKind::Repeat(inner) => format!("repeat {}", call(inner)),
        ExprKind::Each(inner) => format!("each {}", call(inner)),
        ExprKind::Tuple(items) => format!("<{}>", list(items)),
        ExprKind::List(items) => format!("[{}]", list(items)),
        ExprKind::Unary(UnaryOp::Neg, operand) => format!("(-{})", shown(operand)),
        ExprKind::Unary(UnaryOp::Not, operand) => format!("(not {})", shown(operand)),
        ExprKind::Binary(op, a, b) => format!("({} {} {})", shown(a), op.symbol(), shown(b)),
        ExprKind::If { condition, then, otherwise } => {
            format!("(if {} {} {})", shown(condition), shown(then), shown(otherwise))
        }
        ExprKind::Reshape(operand, dims) => format!("({} as {})", shown(operand), dims.len()),
    }
}

fn check(text: &str, expected: &str) {
    match members(&format!("a = {text}")).as_slice() {
        [Member::Constant(Constant { value: ConstantValue::Expr(expr), .. })] => {
            assert_eq!(shown(expr), expected);
        }
        other => panic!("not one constant: {other:?}"),
    }
}

#[test]
fn operators_bind_as_in_mathematics() {
    check("1 + 2 * 3 - 4", "((1 + (2 * 3)) - 4)");
    check("-x ^ 2", "(-(x ^ 2))");
    check("x ^ -y ^ z", "(x ^ (-(y ^ z)))");
    check("2 * -x", "(2 * (-x))");
    check("a / b / c", "((a / b) / c)");
    check("not a == b and c or d", "(((not (a == b)) and c) or d)");
    check("if a then b else c + 1", "(if a b (c + 1))");
    check("if a then b else if c then d else e", "(if a b (if c d e))");
}

#[test]
fn as_binds_tighter_than_operators() {
    check("x + y as [a, b]", "(x + (y as 2))");
    check("f(x as [a]) as [.., b] ^ 2", "((f((x as 1)) as 2) ^ 2)");
    check("(x * y) as [a]", "((x * y) as 1)");
}

#[test]
fn a_tuple_has_a_comma() {
    check("f((a), (a, b), [a,])", "f(a, <a, b>, [a])");
}

#[test]
fn numbers_have_suffixes() {
    check("[469G, 2k, 14.3T, 1e-6]", "[469000000000, 2000, 14300000000000, 0.000001]");
}

#[test]
fn statements_may_follow_each_other_on_a_line() {
    let names: Vec<String> = members("a = 1 b? = -c  d = (e) f = not g; h = x | y  i : J")
        .iter()
        .map(|member| match member {
            Member::Constant(constant) => constant.name.text.clone(),
            Member::Submodule(submodule) => submodule.name.text.clone(),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(names, ["a", "b", "d", "f", "h", "i"]);
}

#[test]
fn a_line_that_begins_with_a_sign_is_a_statement() {
    let members = members("forward(x: [B]) -> [B] {\na = f\n(b, c)\n-a\n}");
    let [Member::Forward(forward)] = members.as_slice() else { panic!("{members:?}") };
    assert_eq!(forward.body.len(), 3);
}

#[test]
fn keywords_are_names_elsewhere() {
    let members = members(
        "weight weight : [a]\nstate : weight\nweight = 1\nloss = emit\ncopy : copy of copy\n\
         config = update\nschedule schedule = 1\nmodel : train(model = 1, use = of)\n\
         tokens = steps",
    );
    let kinds: Vec<&str> = members
        .iter()
        .map(|member| match member {
            Member::Weight(_) => "weight",
            Member::Submodule(_) => "submodule",
            Member::Constant(_) => "constant",
            Member::Copy(_) => "copy",
            Member::Schedule(_) => "schedule",
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(
        kinds,
        [
            "weight",
            "submodule",
            "constant",
            "constant",
            "copy",
            "constant",
            "schedule",
            "submodule",
            "constant",
        ]
    );
}

#[test]
fn a_stack_has_counts() {
    let members =
        members("a : 2 * n * Block(x), (d - 1) * Block(y) sharing b, c at \"l.{d + i}.x\"");
    let [Member::Submodule(stack)] = members.as_slice() else { panic!("{members:?}") };
    let placed: Vec<(Option<String>, String)> = stack
        .placements
        .iter()
        .map(|placement| (placement.count.as_ref().map(shown), shown(&placement.module)))
        .collect();
    assert_eq!(
        placed,
        [
            (Some("(2 * n)".to_string()), "Block(x)".to_string()),
            (Some("(d - 1)".to_string()), "Block(y)".to_string()),
        ]
    );
    assert_eq!(stack.sharing.len(), 2);
    let parts = &stack.at.as_ref().expect("a template").parts;
    assert!(matches!(&parts[0], TemplatePart::Text(text) if text == "l."));
    assert!(matches!(&parts[1], TemplatePart::Expr(expr) if shown(expr) == "(d + i)"));
    assert!(matches!(&parts[2], TemplatePart::Text(text) if text == ".x"));
}

#[test]
fn a_schedule_has_phases_and_a_value_has_none() {
    let members = members(
        "train t {\n a = 1\n b = 0 -> 1 over 10 steps, cosine 1 -> x over 2T tokens, 3\n\
         c = [1, 2]\n forward \"*.gate\" { weight = f32 }\n d = cosine\n}",
    );
    let [Member::Block(block)] = members.as_slice() else { panic!("{members:?}") };
    assert!(matches!(&block.entries[0].value, EntryValue::Expr(_)));
    let EntryValue::Schedule(phases) = &block.entries[1].value else { panic!("{block:?}") };
    let units: Vec<Option<Unit>> =
        phases.iter().map(|phase| phase.over.as_ref().map(|over| over.unit)).collect();
    assert_eq!(units, [Some(Unit::Steps), Some(Unit::Tokens), None]);
    assert!(matches!(&phases[1].shape, PhaseShape::Cosine { .. }));
    let EntryValue::Nested { labels, entries } = &block.entries[3].value else {
        panic!("{block:?}")
    };
    assert_eq!((labels[0].text.as_str(), labels[0].quoted), ("*.gate", true));
    assert_eq!(entries[0].key.text, "weight");
    assert_eq!(block.entries.len(), 5);
}

#[test]
fn spans_are_the_text_of_their_nodes() {
    let text = "weft 1\nmodule A(x) {\n  b : 2 * Block((x + 1) * 3)  at \"l\" # why\n}\n";
    let mut map = SourceMap::new();
    let (file, _) = parse_file(&mut map, "test.model", text);
    let [Item::Module(module)] = file.items.as_slice() else { panic!("{file:?}") };
    assert_eq!(map.slice(module.members[0].span()), "b : 2 * Block((x + 1) * 3)  at \"l\"");
    let Member::Submodule(submodule) = &module.members[0] else { panic!("{module:?}") };
    let ExprKind::Call(call) = &submodule.placements[0].module.kind else { panic!("{module:?}") };
    assert_eq!(map.slice(call.args[0].span), "(x + 1) * 3");
    assert_eq!(map.slice(file.comments[0]), "# why");
    assert_eq!(map.place(submodule.span), "test.model:3");
}
