//! A kernel whose threads work together: typed parameters, a stated number of threads, and shared
//! memory that the launch sizes.
//!
//! Tensor maps are parameters by value that stay where the launch put them: a copy in a thread's
//! own memory could not be read by the unit that copies tensors.

use inkwell::AddressSpace;
use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::module::Linkage;

use super::kernel::PTX_KERNEL;
use super::{Cg, Elem, Ty, Val, built};

/// The kind of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Param {
    /// The address of a buffer in global memory; no other parameter's buffer overlaps it.
    Buffer,
    I32,
    I64,
    F32,
    /// 128 bytes by value, seen through its address.
    TensorMap,
}

/// Bytes of a tensor map, and what they must be aligned to as a parameter.
const TENSOR_MAP_BYTES: u32 = 128;
const TENSOR_MAP_ALIGN: u64 = 64;

/// Bytes that the start of dynamic shared memory is a multiple of: the period of the widest
/// swizzle.
const SHARED_ALIGN: u32 = 1024;

impl<'c> Cg<'c> {
    /// Emits an entry of `threads` threads a CTA, one CTA a multiprocessor. Buffers come as global
    /// pointers, tensor maps as addresses (i64).
    pub fn device_kernel(
        &self,
        name: &str,
        threads: u32,
        params: &[Param],
        body: impl FnOnce(&[Val<'c>]),
    ) {
        let types: Vec<_> = params.iter().map(|&p| self.param_type(p)).collect();
        let f = self.declare(name, &types, Linkage::External);
        f.set_call_conventions(PTX_KERNEL);
        // Registers can be moved between warps only where the assembler knows how many a CTA has.
        self.function_attribute(f, "nvvm.reqntid", &threads.to_string());
        self.function_attribute(f, "nvvm.minctasm", "1");
        let kind = Attribute::get_named_enum_kind_id;
        for (i, _) in params.iter().enumerate().filter(|(_, p)| **p == Param::TensorMap) {
            let bytes = self.ctx.i8_type().array_type(TENSOR_MAP_BYTES);
            let attributes = [
                self.ctx.create_type_attribute(kind("byval"), bytes.into()),
                self.ctx.create_enum_attribute(kind("align"), TENSOR_MAP_ALIGN),
                self.ctx.create_string_attribute("nvvm.grid_constant", ""),
            ];
            for attribute in attributes {
                f.add_attribute(AttributeLoc::Param(i as u32), attribute);
            }
        }
        for (i, _) in params.iter().enumerate().filter(|(_, p)| **p == Param::Buffer) {
            let noalias = self.ctx.create_enum_attribute(kind("noalias"), 0);
            f.add_attribute(AttributeLoc::Param(i as u32), noalias);
        }
        let value = |(raw, &param): (inkwell::values::BasicValueEnum<'c>, &Param)| {
            let ty = match param {
                Param::Buffer => Ty::PTR,
                Param::I32 => Ty::I32,
                Param::I64 => Ty::I64,
                Param::F32 => Ty::F32,
                Param::TensorMap => {
                    let pointer = raw.into_pointer_value();
                    let i64t = self.ctx.i64_type();
                    let address = built(self.builder.build_ptr_to_int(pointer, i64t, ""));
                    return Val { ty: Ty::I64, raw: address.into() };
                }
            };
            Val { ty, raw }
        };
        let values: Vec<Val> = f.get_param_iter().zip(params).map(value).collect();
        body(&values);
        self.finish();
    }

    /// Says of the kernel being emitted that its CTAs come in clusters of `n` along the grid: no
    /// launch without them runs it.
    pub fn require_clusters(&self, n: u32) {
        let f = self.function.get().expect("a kernel is being emitted");
        self.function_attribute(f, "nvvm.cluster_dim", &n.to_string());
    }

    fn param_type(&self, param: Param) -> inkwell::types::BasicTypeEnum<'c> {
        let pointer = |space: u16| self.ctx.ptr_type(AddressSpace::from(space)).into();
        match param {
            Param::Buffer => pointer(GLOBAL),
            Param::TensorMap => pointer(GENERIC),
            Param::I32 => self.llvm_type(Ty::I32),
            Param::I64 => self.llvm_type(Ty::I64),
            Param::F32 => self.llvm_type(Ty::F32),
        }
    }

    /// The start of the shared memory that the launch asks for, an i32 address.
    pub fn dynamic_shared(&self) -> Val<'c> {
        let name = "dynamic_shared";
        let global = self.module.get_global(name).unwrap_or_else(|| {
            let bytes = self.ctx.i8_type().array_type(0);
            let global = self.module.add_global(bytes, Some(AddressSpace::from(SHARED)), name);
            global.set_linkage(Linkage::External);
            global.set_alignment(SHARED_ALIGN);
            global
        });
        let address = global.as_pointer_value();
        let raw = built(self.builder.build_ptr_to_int(address, self.ctx.i32_type(), ""));
        Val { ty: Elem::I32.x(1), raw: raw.into() }
    }
}

/// NVPTX's numbers of memories.
const GENERIC: u16 = 0;
const GLOBAL: u16 = 1;
const SHARED: u16 = 3;
