//! Addresses, loads and stores. Alignment is that of the element unless stated.

use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::values::{BasicValue, BasicValueEnum, IntValue, PointerValue};

use super::{Cg, Elem, Operand, Ty, Val, built};

impl<'c> Cg<'c> {
    /// The address of element `index` (an i64 or a literal) of an array of `elem` at `ptr`.
    pub fn at(&self, ptr: Val<'c>, elem: Elem, index: impl Operand<'c>) -> Val<'c> {
        let index = index.val(self, Ty::I64);
        let ty = self.llvm_type(elem.x(1));
        // SAFETY: every address computed is inside a buffer of the launch, or is never accessed.
        let raw = unsafe { self.builder.build_gep(ty, pointer(ptr), &[integer(index)], "") };
        Val { ty: Ty::PTR, raw: built(raw).into() }
    }

    /// The address `bytes` after `ptr`.
    pub fn offset(&self, ptr: Val<'c>, bytes: impl Operand<'c>) -> Val<'c> {
        self.at(ptr, Elem::I8, bytes)
    }

    pub fn load(&self, ty: Ty, ptr: Val<'c>) -> Val<'c> {
        self.load_aligned(ty, ptr, ty.elem.bytes())
    }

    pub fn load_aligned(&self, ty: Ty, ptr: Val<'c>, align_bytes: u32) -> Val<'c> {
        let raw = built(self.builder.build_load(self.llvm_type(ty), pointer(ptr), ""));
        let load = raw.as_instruction_value().expect("a load is an instruction");
        built(load.set_alignment(align_bytes));
        Val { ty, raw }
    }

    pub fn store(&self, v: Val<'c>, ptr: Val<'c>) {
        self.store_aligned(v, ptr, v.ty.elem.bytes());
    }

    pub fn store_aligned(&self, v: Val<'c>, ptr: Val<'c>, align_bytes: u32) {
        let store = built(self.builder.build_store(pointer(ptr), v.raw));
        built(store.set_alignment(align_bytes));
    }

    /// Loads the lanes where `mask` holds, zero elsewhere; memory of the other lanes is not
    /// touched.
    pub fn masked_load(&self, ty: Ty, ptr: Val<'c>, mask: Val<'c>) -> Val<'c> {
        if ty.lanes == 1 {
            let value = self.if_else(mask, || vec![self.load(ty, ptr)], || vec![self.zero(ty)]);
            return value[0];
        }
        let args = [ptr, mask, self.zero(ty)];
        let call = self.call_intrinsic("llvm.masked.load", &[ty, Ty::PTR], &args);
        call.add_attribute(AttributeLoc::Param(0), self.align(ty.elem.bytes()));
        Val { ty, raw: call.try_as_basic_value().unwrap_basic() }
    }

    /// Stores the lanes where `mask` holds.
    pub fn masked_store(&self, v: Val<'c>, ptr: Val<'c>, mask: Val<'c>) {
        if v.ty.lanes == 1 {
            return self.when(mask, || self.store(v, ptr));
        }
        // LLVM 22 stores a whole word for a narrowed lane that a constant mask chooses.
        let mask = if v.ty.elem.bytes() < 4 { self.unknown_mask(mask) } else { mask };
        let call = self.call_intrinsic("llvm.masked.store", &[v.ty, Ty::PTR], &[v, ptr, mask]);
        call.add_attribute(AttributeLoc::Param(1), self.align(v.ty.elem.bytes()));
    }

    /// The mask, as one the optimizer cannot know to be constant.
    fn unknown_mask(&self, mask: Val<'c>) -> Val<'c> {
        let lanes = mask.ty.lanes;
        let bits = self.ctx.custom_width_int_type(lanes.try_into().expect("lanes are few"));
        let bits = bits.expect("a vector has lanes");
        let word = self.ctx.i64_type();
        let asm = self.ctx.create_inline_asm(
            word.fn_type(&[word.into()], false),
            String::new(),
            "=r,0".into(),
            false,
            false,
            None,
            false,
        );
        let packed = built(self.builder.build_bit_cast(mask.raw, bits, ""));
        let packed = packed.into_int_value();
        let wide = built(self.builder.build_int_z_extend(packed, word, ""));
        let fn_type = word.fn_type(&[word.into()], false);
        let call = built(self.builder.build_indirect_call(fn_type, asm, &[wide.into()], ""));
        let same = call.try_as_basic_value().unwrap_basic().into_int_value();
        let narrow = built(self.builder.build_int_truncate(same, bits, ""));
        let raw = built(self.builder.build_bit_cast(narrow, self.llvm_type(mask.ty), ""));
        Val { ty: mask.ty, raw }
    }

    /// Loads `ty` under an optional mask: the form a loop over columns wants, whose tail alone is
    /// masked.
    pub fn load_tail(&self, ty: Ty, ptr: Val<'c>, mask: Option<Val<'c>>) -> Val<'c> {
        mask.map_or_else(|| self.load(ty, ptr), |m| self.masked_load(ty, ptr, m))
    }

    /// Stores under an optional mask.
    pub fn store_tail(&self, v: Val<'c>, ptr: Val<'c>, mask: Option<Val<'c>>) {
        match mask {
            None => self.store(v, ptr),
            Some(m) => self.masked_store(v, ptr, m),
        }
    }

    /// Asks for the line at `ptr` to be brought into the nearest cache for reading.
    pub fn prefetch(&self, ptr: Val<'c>) {
        let args = [ptr, self.i32(0), self.i32(3), self.i32(1)];
        self.call_intrinsic("llvm.prefetch", &[Ty::PTR], &args);
    }

    fn align(&self, bytes: u32) -> Attribute {
        let kind = Attribute::get_named_enum_kind_id("align");
        self.ctx.create_enum_attribute(kind, bytes.into())
    }
}

fn pointer(v: Val<'_>) -> PointerValue<'_> {
    match v.raw {
        BasicValueEnum::PointerValue(p) => p,
        _ => panic!("{} where a pointer is wanted", v.ty),
    }
}

fn integer(v: Val<'_>) -> IntValue<'_> {
    match v.raw {
        BasicValueEnum::IntValue(i) => i,
        _ => panic!("{} where an integer is wanted", v.ty),
    }
}
