//! Random arguments for tests: well-formed, and the same for a seed on every machine.

use super::{Data, Sizes, Tensor};
use crate::module::{FuncId, Module};
use crate::ty::Type;

/// What a parameter may hold: floats in `low..high`, integers in `low..high`, bools either.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Range {
    pub low: f64,
    pub high: f64,
}

/// One argument for each parameter of `func`; `range` is asked with the parameter's place and type.
pub fn random_args(
    module: &Module,
    func: FuncId,
    sizes: &Sizes,
    seed: u64,
    range: &dyn Fn(usize, &Type) -> Range,
) -> Result<Vec<Tensor>, String> {
    let f = module.funcs.get(func.0 as usize).ok_or("no such function")?;
    let mut draw = SplitMix(seed);
    let mut args = vec![];
    for (i, p) in f.params.iter().enumerate() {
        let ty = f.ty(*p);
        let dim = |d| module.eval_dim(d, &|s| sizes.get(&s).copied()).map(|n| n as usize);
        let dims: Option<Vec<usize>> = ty.dims.iter().map(|d| dim(*d)).collect();
        let dims =
            dims.ok_or_else(|| format!("parameter {i} has a dim whose size is not given"))?;
        let n: usize = dims.iter().product();
        let Range { low, high } = range(i, ty);
        let mut float = || low + (high - low) * draw.unit();
        let data = if ty.dtype.is_float() {
            Data::Float((0..n).map(|_| float()).collect())
        } else if ty.dtype.is_int() {
            Data::Int((0..n).map(|_| float().floor() as i64).collect())
        } else {
            Data::Bool((0..n).map(|_| draw.unit() < 0.5).collect())
        };
        args.push(Tensor { dtype: ty.dtype, dims, data, scales: None });
    }
    Ok(args)
}

/// SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
struct SplitMix(u64);

impl SplitMix {
    /// Uniform in `[0, 1)`.
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }
}
