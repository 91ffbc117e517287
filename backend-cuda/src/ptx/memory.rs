//! Single accesses under a predicate, and accesses to shared memory by address.

use weft_codegen::emit::{Cg, Effect, Elem, Ty, Val};

pub fn load_shared<'c>(cg: &Cg<'c>, ty: Ty, address: Val<'c>) -> Val<'c> {
    let text = format!("ld.shared.{} $0, [$1];", word(ty.elem));
    cg.asm(&text, &[ty], &[address], 0, Effect::Memory)[0]
}

/// Two neighbours of f32; the address is a multiple of their bytes.
pub fn load_shared_pair<'c>(cg: &Cg<'c>, address: Val<'c>) -> [Val<'c>; 2] {
    let text = "ld.shared.v2.f32 {$0,$1}, [$2];";
    let both = cg.asm(text, &[Ty::F32; 2], &[address], 0, Effect::Memory);
    [both[0], both[1]]
}

/// A byte, widened to an i32.
pub fn load_shared_byte<'c>(cg: &Cg<'c>, address: Val<'c>) -> Val<'c> {
    cg.asm("ld.shared.u8 $0, [$1];", &[Ty::I32], &[address], 0, Effect::Memory)[0]
}

/// Four neighbours of 32 bits; the address is a multiple of 16.
pub fn store_shared_four<'c>(cg: &Cg<'c>, v: [Val<'c>; 4], address: Val<'c>) {
    let text = "st.shared.v4.b32 [$0], {$1,$2,$3,$4};";
    cg.asm(text, &[], &[address, v[0], v[1], v[2], v[3]], 0, Effect::Memory);
}

pub fn store_shared<'c>(cg: &Cg<'c>, v: Val<'c>, address: Val<'c>) {
    let text = format!("st.shared.{} [$0], $1;", word(v.ty.elem));
    cg.asm(&text, &[], &[address, v], 0, Effect::Memory);
}

/// Stores neighbours in global memory where `when` holds; the address is a multiple of their bytes.
pub fn store_if<'c>(cg: &Cg<'c>, when: Val<'c>, values: &[Val<'c>], address: Val<'c>) {
    let (vector, list) = vector(values.len(), 2);
    let text = format!("@$0 st.global{vector}.{} [$1], {list};", word(values[0].ty.elem));
    let operands: Vec<Val> = [when, address].into_iter().chain(values.to_vec()).collect();
    cg.asm(&text, &[], &operands, 0, Effect::Memory);
}

/// Loads neighbours of global memory over `values`, which stay where `when` does not hold.
pub fn load_if<'c>(
    cg: &Cg<'c>,
    when: Val<'c>,
    address: Val<'c>,
    values: &[Val<'c>],
) -> Vec<Val<'c>> {
    let n = values.len();
    let (vector, list) = vector(n, 0);
    let (ty, p, a) = (word(values[0].ty.elem), 2 * n, 2 * n + 1);
    let text = format!("@${p} ld.global{vector}.{ty} {list}, [${a}];");
    let types: Vec<_> = values.iter().map(|v| v.ty).collect();
    let operands: Vec<Val> = values.iter().copied().chain([when, address]).collect();
    cg.asm(&text, &types, &operands, n, Effect::Memory)
}

fn vector(n: usize, first: usize) -> (String, String) {
    let list = (first..first + n).map(|i| format!("${i}")).collect::<Vec<_>>().join(",");
    match n {
        1 => (String::new(), list),
        n => (format!(".v{n}"), format!("{{{list}}}")),
    }
}

fn word(elem: Elem) -> &'static str {
    match elem.bytes() {
        2 => "b16",
        4 => "b32",
        8 => "b64",
        n => panic!("an access of {n} bytes"),
    }
}
