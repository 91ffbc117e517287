//! A typed builder over LLVM: what every kernel, for every target, is written with.
//!
//! A [`Val`] is a scalar (`lanes == 1`) or a vector; the same call works on both, so code written
//! once serves 16 lanes of a CPU and one lane of a GPU thread. Control flow is structured: loops
//! carry values and closures build the bodies. Mixing types is a bug of the caller and panics with
//! both types. Floating-point arithmetic is IEEE, never reassociated or contracted behind the
//! caller's back; [`Cg::fma`] is the fused operation and nothing else becomes one.
//!
//! ```text
//! let sum = cg.for_(cg.i64(0), n, 8, &[cg.zero(f32x8)], |i, acc| {
//!     let x = cg.load(f32x8, cg.at(ptr, Elem::F32, i));
//!     vec![cg.add(acc[0], x)]
//! });
//! ```

mod arith;
mod asm;
mod control;
mod device;
mod kernel;
mod memory;
mod simt;
mod vector;

use std::cell::Cell;

use inkwell::AddressSpace;
use inkwell::attributes::AttributeLoc;
use inkwell::basic_block::BasicBlock;
use inkwell::builder::Builder;
use inkwell::context::Context;
use inkwell::intrinsics::Intrinsic;
use inkwell::module::{Linkage, Module};
use inkwell::types::{BasicTypeEnum, VectorType};
use inkwell::values::{BasicMetadataValueEnum, BasicValueEnum, FunctionValue};

pub use arith::{Cmp, Operand};
pub use asm::Effect;
pub use device::Param;
pub use kernel::{Frame, Kernel};
pub use simt::{WARP, reduce_cta_bytes};

/// Who runs a kernel's blocks (`kernel.rs` has the conventions).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// Threads of a pool, each some blocks in turn; a vector's lanes are those of registers.
    Cpu,
    /// Threads of a GPU, many to a block; a vector's lanes are what one thread holds.
    Simt,
}

/// What a kernel is compiled for. Plain data: the backends own the tables of real machines.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// Prefix of kernel names, `avx512`.
    pub name: &'static str,
    pub model: Model,
    pub triple: &'static str,
    pub cpu: &'static str,
    /// LLVM feature string, `+avx512bf16,-evex512`.
    pub features: &'static str,
    /// f32 lanes of the widest vector that pays.
    pub lanes: u32,
    /// Vector registers, which bounds what a micro-kernel may keep in them.
    pub vector_registers: u32,
    /// The machine rounds f32 to bf16 itself. It flushes denormals there; the integer form does
    /// not.
    pub bf16_convert: bool,
    /// The machine has a dot product of bf16 pairs accumulated in f32.
    pub bf16_dot: bool,
}

/// The element of a scalar or vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Elem {
    I1,
    I8,
    I16,
    I32,
    I64,
    BF16,
    F32,
    F64,
    Ptr,
}

impl Elem {
    /// Bytes in memory.
    pub fn bytes(self) -> u32 {
        match self {
            Elem::I1 | Elem::I8 => 1,
            Elem::I16 | Elem::BF16 => 2,
            Elem::I32 | Elem::F32 => 4,
            Elem::I64 | Elem::F64 | Elem::Ptr => 8,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Elem::BF16 | Elem::F32 | Elem::F64)
    }

    pub fn is_int(self) -> bool {
        matches!(self, Elem::I1 | Elem::I8 | Elem::I16 | Elem::I32 | Elem::I64)
    }

    /// A vector type of this element, or the scalar when `lanes` is 1.
    pub fn x(self, lanes: u32) -> Ty {
        Ty { elem: self, lanes }
    }
}

/// Element and number of lanes; one lane is a scalar, not a vector of one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ty {
    pub elem: Elem,
    pub lanes: u32,
}

impl Ty {
    pub const I1: Ty = Ty { elem: Elem::I1, lanes: 1 };
    pub const I32: Ty = Ty { elem: Elem::I32, lanes: 1 };
    pub const I64: Ty = Ty { elem: Elem::I64, lanes: 1 };
    pub const F32: Ty = Ty { elem: Elem::F32, lanes: 1 };
    pub const PTR: Ty = Ty { elem: Elem::Ptr, lanes: 1 };

    /// The same lanes of another element.
    pub fn with(self, elem: Elem) -> Ty {
        Ty { elem, lanes: self.lanes }
    }

    /// Bytes in memory.
    pub fn bytes(self) -> u32 {
        self.elem.bytes() * self.lanes
    }
}

impl std::fmt::Display for Ty {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        match self.lanes {
            1 => write!(f, "{:?}", self.elem),
            n => write!(f, "{:?}x{n}", self.elem),
        }
    }
}

/// A value of the function under construction.
#[derive(Clone, Copy, Debug)]
pub struct Val<'c> {
    pub ty: Ty,
    pub raw: BasicValueEnum<'c>,
}

/// The builder: one module, one function at a time.
pub struct Cg<'c> {
    pub ctx: &'c Context,
    pub module: Module<'c>,
    pub target: Target,
    builder: Builder<'c>,
    function: Cell<Option<FunctionValue<'c>>>,
}

/// The builder refuses only what is a bug of this crate (no position, a foreign value).
fn built<T, E: std::fmt::Display>(result: Result<T, E>) -> T {
    match result {
        Ok(value) => value,
        Err(e) => panic!("LLVM builder: {e}"),
    }
}

impl<'c> Cg<'c> {
    pub fn new(ctx: &'c Context, module_name: &str, target: &Target) -> Cg<'c> {
        Cg {
            ctx,
            module: ctx.create_module(module_name),
            target: target.clone(),
            builder: ctx.create_builder(),
            function: Cell::new(None),
        }
    }

    /// f32 vector of the target's width.
    pub fn f32v(&self) -> Ty {
        Elem::F32.x(self.target.lanes)
    }

    /// Starts a function with the given parameters; statements go to its end until [`Cg::finish`].
    pub fn function(&self, name: &str, params: &[Ty], external: bool) -> Vec<Val<'c>> {
        let types: Vec<_> = params.iter().map(|&t| self.llvm_type(t)).collect();
        let linkage = if external { Linkage::External } else { Linkage::Internal };
        let f = self.declare(name, &types, linkage);
        let values = f.get_param_iter().zip(params);
        values.map(|(raw, &ty)| Val { ty, raw }).collect()
    }

    /// Starts a function with parameters of LLVM types.
    fn declare(
        &self,
        name: &str,
        params: &[BasicTypeEnum<'c>],
        linkage: Linkage,
    ) -> FunctionValue<'c> {
        let types: Vec<_> = params.iter().map(|&t| t.into()).collect();
        let ty = self.ctx.void_type().fn_type(&types, false);
        let f = self.module.add_function(name, ty, Some(linkage));
        let mut attributes = vec![
            ("target-cpu", self.target.cpu.to_string()),
            ("target-features", self.target.features.to_string()),
        ];
        if self.target.model == Model::Cpu {
            let width = self.target.lanes * 32;
            attributes.push(("prefer-vector-width", width.to_string()));
            attributes.push(("no-trapping-math", "true".to_string()));
        }
        for (key, value) in attributes.iter().filter(|(_, v)| !v.is_empty()) {
            self.function_attribute(f, key, value);
        }
        let nounwind = inkwell::attributes::Attribute::get_named_enum_kind_id("nounwind");
        f.add_attribute(AttributeLoc::Function, self.ctx.create_enum_attribute(nounwind, 0));
        self.builder.position_at_end(self.ctx.append_basic_block(f, "entry"));
        self.function.set(Some(f));
        f
    }

    /// Gives the function a string attribute, which is how targets are told what LLVM has no other
    /// word for.
    fn function_attribute(&self, f: FunctionValue<'c>, key: &str, value: &str) {
        f.add_attribute(AttributeLoc::Function, self.ctx.create_string_attribute(key, value));
    }

    /// Ends the current function.
    pub fn finish(&self) {
        built(self.builder.build_return(None));
        self.function.set(None);
    }

    /// The LLVM type of `ty`.
    pub fn llvm_type(&self, ty: Ty) -> BasicTypeEnum<'c> {
        let scalar: BasicTypeEnum = match ty.elem {
            Elem::I1 => self.ctx.bool_type().into(),
            Elem::I8 => self.ctx.i8_type().into(),
            // As its bits: targets without bf16 would pass a bf16 through f32 and a library call.
            Elem::I16 | Elem::BF16 => self.ctx.i16_type().into(),
            Elem::I32 => self.ctx.i32_type().into(),
            Elem::I64 => self.ctx.i64_type().into(),
            Elem::F32 => self.ctx.f32_type().into(),
            Elem::F64 => self.ctx.f64_type().into(),
            Elem::Ptr => self.ctx.ptr_type(AddressSpace::default()).into(),
        };
        match (ty.lanes, scalar) {
            (1, scalar) => scalar,
            (n, BasicTypeEnum::IntType(t)) => t.vec_type(n).into(),
            (n, BasicTypeEnum::FloatType(t)) => t.vec_type(n).into(),
            (n, BasicTypeEnum::PointerType(t)) => t.vec_type(n).into(),
            (_, other) => panic!("{other} has no vector form"),
        }
    }

    pub fn i1(&self, v: bool) -> Val<'c> {
        self.int(Ty::I1, v.into())
    }

    pub fn i32(&self, v: i32) -> Val<'c> {
        self.int(Ty::I32, v.into())
    }

    pub fn i64(&self, v: i64) -> Val<'c> {
        self.int(Ty::I64, v)
    }

    pub fn f32(&self, v: f32) -> Val<'c> {
        self.float(Ty::F32, v.into())
    }

    /// An integer constant in every lane.
    pub fn int(&self, ty: Ty, v: i64) -> Val<'c> {
        assert!(ty.elem.is_int(), "integer constant of type {ty}");
        let raw = match self.llvm_type(ty.elem.x(1)) {
            BasicTypeEnum::IntType(t) => t.const_int(v as u64, true),
            other => panic!("{other} is no integer"),
        };
        self.constant_lanes(ty, &vec![raw.into(); ty.lanes as usize])
    }

    /// A floating-point constant in every lane, rounded to the element.
    pub fn float(&self, ty: Ty, v: f64) -> Val<'c> {
        assert!(matches!(ty.elem, Elem::F32 | Elem::F64), "floating-point constant of type {ty}");
        let raw = match self.llvm_type(ty.elem.x(1)) {
            BasicTypeEnum::FloatType(t) => t.const_float(v),
            other => panic!("{other} is no float"),
        };
        self.constant_lanes(ty, &vec![raw.into(); ty.lanes as usize])
    }

    /// Zero (or null, or false) in every lane.
    pub fn zero(&self, ty: Ty) -> Val<'c> {
        Val { ty, raw: self.llvm_type(ty).const_zero() }
    }

    /// No particular value.
    pub fn undef(&self, ty: Ty) -> Val<'c> {
        let raw = match self.llvm_type(ty) {
            BasicTypeEnum::IntType(t) => t.get_poison().into(),
            BasicTypeEnum::FloatType(t) => t.get_poison().into(),
            BasicTypeEnum::PointerType(t) => t.get_poison().into(),
            BasicTypeEnum::VectorType(t) => t.get_poison().into(),
            other => panic!("{other} is no value type"),
        };
        Val { ty, raw }
    }

    /// `[0, 1, 2, ..]` of an integer type.
    pub fn iota(&self, ty: Ty) -> Val<'c> {
        let lane = |i| self.int(ty.elem.x(1), i64::from(i)).raw;
        self.constant_lanes(ty, &(0..ty.lanes).map(lane).collect::<Vec<_>>())
    }

    /// An integer constant with a value for each lane.
    pub fn lanes_of(&self, ty: Ty, value: impl Fn(u32) -> i64) -> Val<'c> {
        let lane = |i| self.int(ty.elem.x(1), value(i)).raw;
        self.constant_lanes(ty, &(0..ty.lanes).map(lane).collect::<Vec<_>>())
    }

    fn constant_lanes(&self, ty: Ty, lanes: &[BasicValueEnum<'c>]) -> Val<'c> {
        let raw = if ty.lanes == 1 { lanes[0] } else { VectorType::const_vector(lanes).into() };
        Val { ty, raw }
    }

    /// Calls an LLVM intrinsic, overloaded on `over`. For the few machine instructions that have no
    /// operation here; a name this LLVM does not know is a bug and panics.
    pub fn intrinsic(&self, name: &str, over: &[Ty], args: &[Val<'c>], result: Ty) -> Val<'c> {
        let call = self.call_intrinsic(name, over, args);
        Val { ty: result, raw: call.try_as_basic_value().unwrap_basic() }
    }

    fn call_intrinsic(
        &self,
        name: &str,
        over: &[Ty],
        args: &[Val<'c>],
    ) -> inkwell::values::CallSiteValue<'c> {
        let types: Vec<_> = over.iter().map(|&t| self.llvm_type(t)).collect();
        let declaration = Intrinsic::find(name)
            .and_then(|i| i.get_declaration(&self.module, &types))
            .unwrap_or_else(|| panic!("this LLVM has no intrinsic {name}"));
        let args: Vec<BasicMetadataValueEnum> = args.iter().map(|a| a.raw.into()).collect();
        built(self.builder.build_call(declaration, &args, ""))
    }

    fn here(&self) -> BasicBlock<'c> {
        self.builder.get_insert_block().expect("a function is under construction")
    }

    fn new_block(&self, name: &str) -> BasicBlock<'c> {
        let f = self.function.get().expect("a function is under construction");
        self.ctx.append_basic_block(f, name)
    }
}
