//! Cut an entry down to some of its results.
//!
//! ```text
//! func @forward(%tokens, .., %a: state f32[..], %b: state f32[..]) -> (logits, a: state f32[..],
//! b: state f32[..])   => keep `logits`, which reads %a:  func @forward(%tokens, .., %a: state
//! f32[..]) -> (logits, a: state f32[..])
//! ```
//!
//! Why: an entry serves several ends, and each graph has one. A state stays if what is kept reads
//! it in this run and so, through its new value, in the next. Parameters that are not read any more
//! go too; messages to other ranks stay. Called on a module before the pipeline or after it;
//! callees that no one calls any more are left for `dce`.

use weft_ir::module::{FuncId, Module, ValueId};
use weft_ir::op::Trait;

use crate::rewrite::Copier;

/// Keep the results of `entry` whose names are `wanted`, and the states they need.
pub fn keep_results(module: &mut Module, entry: FuncId, wanted: &dyn Fn(&str) -> bool) {
    let func = module.func(entry);
    let mut results: Vec<bool> = func.result_names.iter().map(|n| wanted(n)).collect();
    let mut needed;
    loop {
        needed = vec![false; func.n_values()];
        let mut need = |v: &ValueId| needed[v.0 as usize] = true;
        func.results.iter().zip(&results).filter(|(_, k)| **k).for_each(|(r, _)| need(r));
        for (_, op) in func.body_ops().rev() {
            if op.op.has(Trait::Message) || op.results.iter().any(|r| needed[r.0 as usize]) {
                op.operands.iter().for_each(|x| needed[x.0 as usize] = true);
            }
        }
        let mut grew = false;
        for (p, r) in &func.donated {
            let read = needed[func.params[*p as usize].0 as usize];
            let kept = &mut results[*r as usize];
            grew |= read && !*kept;
            *kept |= read;
        }
        if !grew {
            break;
        }
    }
    let mut copy = Copier::new(func, &func.name);
    let (mut params, mut donated) = (vec![], vec![]);
    for (i, p) in func.params.iter().enumerate().filter(|(_, p)| needed[p.0 as usize]) {
        copy.param(*p, "p");
        params.push(i as u32);
    }
    for (id, op) in func.body_ops() {
        if op.op.has(Trait::Message) || op.results.iter().any(|r| needed[r.0 as usize]) {
            copy.op(id);
        }
    }
    let kept: Vec<u32> = (0..results.len() as u32).filter(|i| results[*i as usize]).collect();
    for (p, r) in &func.donated {
        let place = |all: &[u32], x: &u32| all.iter().position(|y| y == x).map(|i| i as u32);
        donated.extend(place(&params, p).zip(place(&kept, r)));
    }
    let values = kept.iter().map(|i| copy.get(func.results[*i as usize])).collect();
    let mut cut = copy.to.finish(values);
    cut.result_names = kept.iter().map(|i| func.result_names[*i as usize].clone()).collect();
    cut.donated = donated;
    *module.func_mut(entry) = cut;
}

#[cfg(test)]
mod tests {
    use super::*;
    use weft_ir::text;

    #[test]
    fn a_state_stays_only_where_it_is_read() {
        let before = "\
weft-ir 1
module M
state @a : f32[4] at \"a\" init 0
state @b : f32[4] at \"b\" init 0
func @f(%x: f32[4], %a: state f32[4], %b: state f32[4], %c: f32[4]) \
  -> (y: f32[4], a: state f32[4], b: state f32[4]) donates (1 -> 1, 2 -> 2) {
  %old = read %a : f32[4]
  %y = add %x, %old : f32[4]
  %new = assign %a, %y : state f32[4]
  %z = add %c, %y : f32[4]
  %newer = assign %b, %z : state f32[4]
  return %y, %new, %newer
}
";
        let mut module = text::parse(before).expect("it parses");
        let entry = module.find("f").expect("it is there");
        keep_results(&mut module, entry, &|name| name == "y");
        // Types, names and donations are checked on the way back.
        let module = text::parse(&text::print(&module)).expect("it reads back");
        let f = module.func(module.find("f").expect("it is there"));
        assert_eq!(f.result_names, ["y", "a"]);
        assert_eq!((f.params.len(), f.donated.as_slice()), (2, &[(1, 1)][..]));
    }
}
