//! The GPUs that kernels are compiled for.

use weft_codegen::emit::{Model, Target};

/// Hopper, with the instructions that only this architecture has.
pub fn hopper() -> Target {
    Target {
        name: "sm90a",
        model: Model::Simt,
        triple: "nvptx64-nvidia-cuda",
        cpu: "sm_90a",
        features: "+ptx83",
        // A thread holds scalars; what is a vector on a CPU is a warp here.
        lanes: 1,
        vector_registers: 255,
        bf16_convert: false,
        bf16_dot: false,
    }
}
