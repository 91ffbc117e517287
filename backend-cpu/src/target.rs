//! The CPU variants as LLVM targets.

use weft_codegen::emit::{Model, Target};
use weft_graph::CpuVariant;

const TRIPLE: &str = "x86_64-unknown-linux-gnu";

/// What kernels of a variant are compiled for. The level `x86-64-v3` has the features of
/// [`CpuVariant::Avx2`], `x86-64-v4` those of [`CpuVariant::Avx512`].
pub fn target(variant: CpuVariant) -> Target {
    let avx2 = Target {
        name: variant.name(),
        model: Model::Cpu,
        triple: TRIPLE,
        cpu: "x86-64-v3",
        features: "",
        lanes: 8,
        vector_registers: 16,
        bf16_convert: false,
        bf16_dot: false,
    };
    let avx512 = Target { cpu: "x86-64-v4", lanes: 16, vector_registers: 32, ..avx2.clone() };
    match variant {
        CpuVariant::Avx2 => avx2,
        CpuVariant::Avx512 => avx512,
        CpuVariant::Avx512Bf16 => {
            Target { features: "+avx512bf16", bf16_convert: true, bf16_dot: true, ..avx512 }
        }
    }
}
