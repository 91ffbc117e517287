//! `model A from B`: values, places, blocks, and what may not be.

use std::path::Path;

use weft_ir::text;
use weft_lang::ast::{BlockKind, Item, Member};
use weft_lang::diag;
use weft_lang::elaborate::{Const, Overrides, Tree, elaborate};
use weft_lang::lower::{Purpose, Settings, Size, lower};

const BASE: &str = "weft 1
module Linear(in, out) {
  weight weight : [out, in]
  forward(x: [.., in]) -> [.., out] { matmul(x, transpose(weight)) }
}
model Base {
  width = 4   half = width / 2   act = silu | gelu   rank? = 3
  schedule beta = 1
  config { width = hidden_size }
  up   : Linear(width, half)
  down : Linear(half, width)
  forward(x: [B, S, width]) -> [B, S, width] {
    h = up(x)
    if act == silu { h = silu(h) } else { h = gelu(h) }
    down(h)
  }
  loss { mean(result) }
  train long { steps = 1000 }
}
serve plain { batch = 1 }
";

/// Runs `inspect` on the tree of `text`, a file next to one with `BASE`.
fn with_tree<T>(text: &str, inspect: impl FnOnce(&Tree, &str) -> T) -> T {
    let read = |path: &Path| match path.to_str() {
        Some("m/base.model") => Ok(BASE.to_string()),
        _ => Ok(format!("weft 1\nuse \"base.model\"\n{text}\n")),
    };
    let (program, map, mut diags) = weft_lang::load(Path::new("m/own.model"), &read);
    let tree = elaborate(&program, &map, &Overrides::default(), &mut diags);
    let settings =
        Settings { batch: Size::Fixed(1), seq: Size::Fixed(2), segments: false, cache: None };
    let tree = tree.expect("a tree");
    let lowered = lower(&program, &tree, &map, Purpose::Infer, settings, &mut diags);
    assert!(diags.is_empty(), "{}", diag::render_all(&map, &diags, false));
    inspect(&tree, &text::print(&lowered.expect("a module").module))
}

/// The rendered diagnostics of `text` next to `BASE`.
fn errors(text: &str) -> String {
    let read = |path: &Path| match path.to_str() {
        Some("m/base.model") => Ok(BASE.to_string()),
        Some("m/other.model") => Ok("weft 1\nuse \"own.model\"\nmodel Other from Own { }\n".into()),
        _ => Ok(format!("weft 1\nuse \"base.model\"\n{text}\n")),
    };
    let (_, map, diags) = weft_lang::load(Path::new("m/own.model"), &read);
    diag::render_all(&map, &diags, false)
}

fn number(tree: &Tree, name: &str) -> f64 {
    match tree.root().consts.get(name) {
        Some(Const::Num(n)) => *n,
        other => panic!("{name} is {other:?}"),
    }
}

#[test]
fn what_follows_a_constant_sees_its_new_value() {
    with_tree("model Own from Base { width = 6 }", |tree, ir| {
        assert_eq!(tree.name, "Own");
        assert_eq!((number(tree, "width"), number(tree, "half")), (6.0, 3.0));
        assert!(ir.contains("weight @up.weight : f32[3, 6]"), "{ir}");
        // The op stands where it is written: in the base's file.
        assert!(ir.contains("base.model:13:"), "{ir}");
    });
}

#[test]
fn enumerations_keep_their_words_and_optionals_their_none() {
    with_tree("model Own from Base { act = gelu  rank = none }", |tree, ir| {
        assert_eq!(tree.root().consts["act"], Const::Word("gelu".into()));
        assert_eq!(tree.root().consts["rank"], Const::None);
        assert!(ir.contains("erf"), "{ir}");
    });
}

#[test]
fn bodies_and_members_take_the_place_of_the_bases() {
    let text = "model Own from Base {
  down : 2 * Linear(half, half)
  last : Linear(half, width)
  forward(x: [B, S, width]) -> [B, S, width] { last(repeat down(up(x))) }
}";
    with_tree(text, |tree, ir| {
        assert!(tree.loss.is_some());
        assert!(tree.config.is_some());
        assert!(ir.contains("weight @down.weight : f32[2, 2, 2] at \"down.{i}.weight\""), "{ir}");
        assert!(ir.contains("weight @last.weight : f32[4, 2]"), "{ir}");
    });
}

#[test]
fn blocks_of_a_kind_replace_all_of_that_kind() {
    let names = |tree: &Tree, kind: BlockKind| -> Vec<String> {
        let blocks = tree.blocks.iter().filter(|b| b.kind == kind);
        blocks.map(|b| b.name.text.clone()).collect()
    };
    with_tree("model Own from Base { train short { steps = 1 } }", |tree, _| {
        assert_eq!(names(tree, BlockKind::Train), ["short"]);
        assert_eq!(names(tree, BlockKind::Serve), ["plain"]);
    });
    with_tree("model Own from Base { }\nserve fast { batch = 8 }", |tree, _| {
        assert_eq!(names(tree, BlockKind::Train), ["long"]);
        assert_eq!(names(tree, BlockKind::Serve), ["fast"]);
    });
}

#[test]
fn what_the_base_does_not_have_is_refused() {
    let unknown = errors("model Own from Base { widht = 3 }");
    assert!(unknown.contains("model `Base` has no constant `widht`"), "{unknown}");
    assert!(unknown.contains("did you mean `width`?"), "{unknown}");
    let other_kind = errors("model Own from Base { beta = 3 }");
    assert!(other_kind.contains("`beta` is something else in the base"), "{other_kind}");
    let word = errors("model Own from Base { act = relu }");
    assert!(word.contains("`act` is one of silu, gelu, found `relu`"), "{word}");
    assert!(errors("model Own from Bass { }").contains("did you mean `Base`?"));
}

#[test]
fn a_model_does_not_come_from_itself() {
    let itself = errors("model Own from Own { }");
    assert!(itself.contains("a model cannot come from itself: Own from Own"), "{itself}");
    let circle = errors("use \"other.model\"\nmodel Own from Other { }");
    assert!(circle.contains("cannot come from itself"), "{circle}");
}

/// What is written beside a model in its file goes with it; a derived model is a model like others.
#[test]
fn a_derived_model_can_be_derived_from() {
    let read = |path: &Path| match path.to_str() {
        Some("base.model") => Ok(BASE.to_string()),
        Some("middle.model") => {
            Ok("weft 1\nuse \"base.model\"\nmodel Middle from Base { width = 8 }\n".into())
        }
        _ => Ok("weft 1\nuse \"middle.model\"\nmodel Own from Middle { half = 1 }\n".to_string()),
    };
    let (program, map, mut diags) = weft_lang::load(Path::new("own.model"), &read);
    let tree = elaborate(&program, &map, &Overrides::default(), &mut diags).expect("a tree");
    assert!(diags.is_empty(), "{}", diag::render_all(&map, &diags, false));
    assert_eq!((number(&tree, "width"), number(&tree, "half")), (8.0, 1.0));
    let models = program.files[0].items.iter().filter_map(|item| match item {
        Item::Model(m) => Some(m),
        _ => None,
    });
    for model in models {
        assert!(model.base.is_none(), "resolved");
        assert!(model.members.iter().any(|m| matches!(m, Member::Forward(_))));
    }
}
