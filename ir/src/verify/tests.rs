//! Broken IR that the text form cannot say; what it can say is in `tests/ir/verify/`.

use super::*;
use crate::attr::Attrs;
use crate::module::{Axis, Span, Store};
use crate::ty::{AxisId, Quant, ScaleLayout};
use crate::{dim::SymId, module::Init};

const TEXT: &str = "
dims { B <= 4 }
func @g(%x: f32[B]) -> (f32[B]) {
  %y = neg %x : f32[B]  # a.model:1:1
  return %y
}
func @f(%x: f32[B]) -> (y: f32[B]) {
  %y = call %x {func = @g} : f32[B]  # a.model:1:1
  %z = add %y, %y : f32[B]  # a.model:1:1
  return %z
}
";

/// `change` breaks the module so that the verifier says `expected` and printing still works.
fn check(expected: &str, change: impl FnOnce(&mut Module)) {
    let mut m = text::parse(TEXT).unwrap();
    verify(&m).unwrap();
    change(&mut m);
    assert!(text::print(&m).starts_with("weft-ir 1"));
    let errors = verify(&m).unwrap_err();
    assert!(errors.iter().any(|e| e.message.contains(expected)), "{errors:?}");
}

fn f(m: &mut Module) -> &mut Func {
    m.func_mut(FuncId(1))
}

#[test]
fn ids_point_into_their_tables() {
    let far = ValueId(99);
    check("operand 99 is no value", |m| f(m).op_mut(OpId(1)).operands[0] = far);
    check("result 99 is no value", |m| f(m).op_mut(OpId(1)).results[0] = far);
    check("parameter 0 is no value", |m| f(m).params[0] = far);
    check("value 99 is returned and is none", |m| f(m).results[0] = far);
    check("the body holds op 7", |m| f(m).body.push(OpId(7)));
    let no_func = || Attrs::new().func("func", FuncId(9));
    check("no such function", |m| f(m).op_mut(OpId(0)).attrs = no_func());
    let no_sym = || Type::f32([Dim::sym(SymId(5))]);
    check("a symbol the module does not have", |m| f(m).value_mut(ValueId(0)).ty = no_sym());
    let no_axis = Type { axes: vec![Some(AxisId(3))], ..Type::f32([Dim::fixed(2)]) };
    check("a mesh axis the module does not have", |m| f(m).value_mut(ValueId(0)).ty = no_axis);
    let nowhere = Span { file: 8, line: 1, col: 1 };
    check("no place in a source file", |m| f(m).op_mut(OpId(0)).spans = vec![nowhere]);
}

#[test]
fn a_value_has_one_definition() {
    check("defined twice", |m| f(m).op_mut(OpId(1)).results[0] = ValueId(1));
    check("parameter 0 says another defines it", |m| f(m).params[0] = ValueId(1));
    check("defined twice", |m| f(m).body.push(OpId(1)));
}

#[test]
fn names_are_unique() {
    check("two values are called %x", |m| f(m).value_mut(ValueId(1)).name = Some("x".into()));
    check("two functions are called @g", |m| f(m).name = "g".into());
    check("either every result has a name or none", |m| f(m).result_names.push("z".into()));
}

#[test]
fn attributes_are_of_the_kind_of_the_row() {
    let wrong = || Attrs::new().int("func", 0);
    check("attribute func has another kind", |m| f(m).op_mut(OpId(0)).attrs = wrong());
    let more = || Attrs::new().int("eps", 0);
    check("add has no attribute eps", |m| f(m).op_mut(OpId(1)).attrs = more());
}

#[test]
fn types_are_well_formed() {
    let two = || Type::f32([Dim::fixed(2), Dim::fixed(2)]);
    let set = |ty: Type| move |m: &mut Module| f(m).value_mut(ValueId(0)).ty = ty;
    check("there are not as many axes as dims", |m| {
        m.axes.push(Axis { name: "dp".into(), size: 2, within: None });
        set(Type { axes: vec![Some(AxisId(0))], ..two() })(m);
    });
    let quant = Quant { group: [0, 1], scale: DType::F32, layout: ScaleLayout::RowMajor };
    check("a group's sides are at least 1", set(Type { quant: Some(quant), ..two() }));
    let huge = Type::f32([Dim::fixed(1 << 40), Dim::fixed(1 << 40)]);
    check("no 64-bit number", set(huge));
}

#[test]
fn a_schedule_is_a_scalar() {
    check("a schedule is an f32 scalar", |m| {
        let (kind, init) = (StoreKind::Schedule, Init::Constant(0.0));
        let ty = Type::f32([Dim::fixed(2)]);
        let store =
            Store { ty, kind, templates: vec![], starts: vec![], init, part: None, placed: None };
        m.stores.insert("s".into(), store);
    });
}
