//! Matrix products of a warpgroup, `D = A · B + D` of 64 rows: started, grouped, waited for.
//!
//! Sums that a product is filling are tied through every asm between its start and its wait, so
//! that LLVM cannot read them in between; the assembler would mend that by waiting after every
//! product, and say so (C7510 to C7515).

use weft_codegen::emit::{Cg, Effect, Ty, Val};

/// Elements of both operands. Sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Bf16,
    E4m3,
}

impl Kind {
    pub fn element_bytes(self) -> u32 {
        match self {
            Kind::Bf16 => 2,
            Kind::E4m3 => 1,
        }
    }

    /// Terms of one product: 32 bytes of each operand's row.
    pub fn k(self) -> u32 {
        32 / self.element_bytes()
    }

    fn suffix(self) -> &'static str {
        match self {
            Kind::Bf16 => "f32.bf16.bf16",
            Kind::E4m3 => "f32.e4m3.e4m3",
        }
    }
}

/// A run of products along k, into the same sums.
#[derive(Clone, Debug)]
pub struct Products {
    pub kind: Kind,
    /// Columns: a multiple of 8 up to 256.
    pub n: u32,
    /// Operands whose rows, not k, are contiguous; of bf16 alone.
    pub transposed: [bool; 2],
    /// For each product, what to add to the descriptors of A and B.
    pub steps: Vec<[u32; 2]>,
}

impl Products {
    fn instruction(
        &self,
        sums: &str,
        a: &str,
        b: &str,
        adds: &str,
        a_in_registers: bool,
    ) -> String {
        let layout = match (self.kind, a_in_registers) {
            (Kind::E4m3, _) => String::new(),
            (Kind::Bf16, true) => format!(", {}", u32::from(self.transposed[1])),
            (Kind::Bf16, false) => {
                let [a, b] = self.transposed.map(u32::from);
                format!(", {a}, {b}")
            }
        };
        let (n, k, types) = (self.n, self.kind.k(), self.kind.suffix());
        format!(
            "\twgmma.mma_async.sync.aligned.m64n{n}k{k}.{types} \
             {{{sums}}}, {a}, {b}, {adds}, 1, 1{layout};\n"
        )
    }

    fn check(&self) {
        assert!(self.n.is_multiple_of(8) && (8..=256).contains(&self.n), "{} columns", self.n);
        let transposes = self.transposed.contains(&true);
        assert!(!transposes || self.kind == Kind::Bf16, "transposed operands of {:?}", self.kind);
    }

    /// Starts the products of A and B in shared memory behind the descriptors, and closes their
    /// group. The first one forgets the old sums unless `adds`. With `left` it waits in the same
    /// breath, until that many groups are under way.
    pub fn start<'c>(
        &self,
        cg: &Cg<'c>,
        sums: &[Val<'c>],
        [a, b]: [Val<'c>; 2],
        adds: Val<'c>,
        left: Option<u32>,
    ) -> Vec<Val<'c>> {
        self.check();
        let n = sums.len();
        assert_eq!(n as u32, self.n / 2, "sums of {} columns", self.n);
        let list = registers(0, n);
        let mut text = String::from("{\n\t.reg .b64 da, db;\n\twgmma.fence.sync.aligned;\n");
        for (step, [sa, sb]) in self.steps.iter().enumerate() {
            text += &format!("\tadd.s64 da, ${}, {sa};\n", 2 * n);
            text += &format!("\tadd.s64 db, ${}, {sb};\n", 2 * n + 1);
            let adds = if step == 0 { format!("${}", 2 * n + 2) } else { "1".into() };
            text += &self.instruction(&list, "da", "db", &adds, false);
        }
        text += &close(left);
        let operands: Vec<Val> = sums.iter().copied().chain([a, b, adds]).collect();
        cg.asm(&text, &vec![Ty::F32; n], &operands, n, Effect::Memory)
    }

    /// As [`Products::start`], with A in registers: four a product, always adding. The registers of
    /// A come back tied too: they are in use until the wait.
    pub fn start_registers<'c>(
        &self,
        cg: &Cg<'c>,
        sums: &[Val<'c>],
        a: &[Val<'c>],
        b: Val<'c>,
    ) -> (Vec<Val<'c>>, Vec<Val<'c>>) {
        self.check();
        let (n, n_a) = (sums.len(), a.len());
        assert_eq!(n as u32, self.n / 2, "sums of {} columns", self.n);
        assert_eq!(n_a, 4 * self.steps.len(), "registers of A");
        let list = registers(0, n);
        let mut text = String::from("{\n\t.reg .b64 db;\n\twgmma.fence.sync.aligned;\n");
        for (step, [_, sb]) in self.steps.iter().enumerate() {
            text += &format!("\tadd.s64 db, ${}, {sb};\n", 2 * (n + n_a));
            let a = format!("{{{}}}", registers(n + 4 * step, 4));
            text += &self.instruction(&list, &a, "db", "1", true);
        }
        text += &close(None);
        let operands: Vec<Val> = sums.iter().chain(a).copied().chain([b]).collect();
        let mut types = vec![Ty::F32; n];
        types.resize(n + n_a, Ty::I32);
        let mut out = cg.asm(&text, &types, &operands, n + n_a, Effect::Memory);
        let a = out.split_off(n);
        (out, a)
    }
}

fn close(left: Option<u32>) -> String {
    let wait = left.map(|n| format!("\twgmma.wait_group.sync.aligned {n};\n")).unwrap_or_default();
    format!("\twgmma.commit_group.sync.aligned;\n{wait}\t}}")
}

fn registers(first: usize, n: usize) -> String {
    (first..first + n).map(|i| format!("${i}")).collect::<Vec<_>>().join(",")
}

/// Waits until at most `left` groups are under way; `held` are the registers of those that end.
pub fn wait<'c>(cg: &Cg<'c>, left: u32, held: &[Val<'c>]) -> Vec<Val<'c>> {
    let types: Vec<Ty> = held.iter().map(|v| v.ty).collect();
    let text = format!("wgmma.wait_group.sync.aligned {left};");
    cg.asm(&text, &types, held, held.len(), Effect::Memory)
}

/// The same for several lists of registers.
pub fn wait_each<'c, const N: usize>(
    cg: &Cg<'c>,
    left: u32,
    held: [&[Val<'c>]; N],
) -> [Vec<Val<'c>>; N] {
    let mut out = wait(cg, left, &held.concat());
    held.map(|list| out.drain(..list.len()).collect())
}
