//! Inline assembly: instructions that LLVM has no operation for.
//!
//! Registers follow the types of operands and results, so that a caller writes the text alone. An
//! asm with effects is `convergent`: nothing may copy it, or move it under a condition that some
//! threads of a warp do not share.

use inkwell::InlineAsmDialect;
use inkwell::attributes::{Attribute, AttributeLoc};
use inkwell::types::{BasicMetadataTypeEnum, BasicType, BasicTypeEnum};
use inkwell::values::{AnyValue, BasicMetadataValueEnum, BasicValueEnum};

use super::{Cg, Elem, Ty, Val, built};

/// What an asm does beside its results.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Nothing: it may be moved, merged with its equal, or dropped.
    Pure,
    /// Its results depend on when it runs, but it touches no memory of the program.
    Ordered,
    /// It reads or writes memory, or orders accesses.
    Memory,
}

impl<'c> Cg<'c> {
    /// Assembles `text`, in which `$0`, `$1`, .. are the results and then the operands. The first
    /// `n_tied` operands lie in the registers of as many results.
    pub fn asm(
        &self,
        text: &str,
        results: &[Ty],
        operands: &[Val<'c>],
        n_tied: usize,
        effect: Effect,
    ) -> Vec<Val<'c>> {
        assert!(n_tied <= results.len().min(operands.len()), "{n_tied} tied operands of {text}");
        let mut constraints: Vec<String> =
            results.iter().map(|&ty| format!("={}", register(ty))).collect();
        for (i, operand) in operands.iter().enumerate() {
            let tied = i < n_tied;
            assert!(!tied || results[i] == operand.ty, "a tied {} of {text}", operand.ty);
            constraints.push(if tied { i.to_string() } else { register(operand.ty).into() });
        }
        if effect == Effect::Memory {
            constraints.push("~{memory}".into());
        }
        let types: Vec<BasicMetadataTypeEnum> =
            operands.iter().map(|v| v.raw.get_type().into()).collect();
        let fields: Vec<BasicTypeEnum> = results.iter().map(|&ty| self.llvm_type(ty)).collect();
        let ty = match fields.as_slice() {
            [] => self.ctx.void_type().fn_type(&types, false),
            [one] => one.fn_type(&types, false),
            many => self.ctx.struct_type(many, false).fn_type(&types, false),
        };
        let code = self.ctx.create_inline_asm(
            ty,
            text.to_string(),
            constraints.join(","),
            effect != Effect::Pure,
            false,
            Some(InlineAsmDialect::ATT),
            false,
        );
        let args: Vec<BasicMetadataValueEnum> = operands.iter().map(|v| v.raw.into()).collect();
        let call = built(self.builder.build_indirect_call(ty, code, &args, ""));
        let mark = |name: &str| {
            let kind = Attribute::get_named_enum_kind_id(name);
            let attribute = self.ctx.create_enum_attribute(kind, 0);
            call.add_attribute(AttributeLoc::Function, attribute);
        };
        mark("nounwind");
        if effect != Effect::Pure {
            mark("convergent");
        }
        match results {
            [] => vec![],
            [one] => vec![Val { ty: *one, raw: call.try_as_basic_value().unwrap_basic() }],
            many => {
                let whole = call.as_any_value_enum().into_struct_value();
                let field = |(i, &ty): (usize, &Ty)| {
                    let raw: BasicValueEnum =
                        built(self.builder.build_extract_value(whole, i as u32, ""));
                    Val { ty, raw }
                };
                many.iter().enumerate().map(field).collect()
            }
        }
    }
}

/// The letter of the registers that hold a scalar.
fn register(ty: Ty) -> &'static str {
    assert_eq!(ty.lanes, 1, "{ty} in one register");
    match ty.elem {
        Elem::I1 => "b",
        Elem::I16 | Elem::BF16 => "h",
        Elem::I32 => "r",
        Elem::I64 | Elem::Ptr => "l",
        Elem::F32 => "f",
        Elem::F64 => "d",
        Elem::I8 => panic!("{ty} has no register of its own"),
    }
}
