//! wgmma with A in registers, MN-major tiles and every width; ldmatrix and stmatrix.

use half::bf16;
use ptx_sim::{Arg, Completion, Device, Error, ErrorKind, Launch, Module};

/// Small whole numbers: sums are exact, so results must be equal.
fn whole(n: usize, seed: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 31 + seed * 17 + i / 7) % 9) as f32 - 4.0).collect()
}

fn bf16_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect()
}

/// How a tile of `rows` by 16 lies in shared memory, and its descriptor without the address.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Layout {
    /// Core matrices of 8 rows by 16 bytes, one after the other along k.
    KPlain,
    /// Rows of 128 bytes in permuted chunks.
    K128,
    /// k rows of 128 bytes: 64 values along the rows of the operand.
    Mn128,
    /// k rows of 16 bytes.
    MnPlain,
}

impl Layout {
    fn is_transposed(self) -> bool {
        matches!(self, Layout::Mn128 | Layout::MnPlain)
    }

    /// Byte of element (row, k), as the ISA draws the canonical layouts.
    fn at(self, row: usize, k: usize) -> usize {
        match self {
            Layout::KPlain => row / 8 * 256 + k / 8 * 128 + row % 8 * 16 + k % 8 * 2,
            Layout::K128 => row * 128 + ((k / 8) ^ (row % 8)) * 16 + k % 8 * 2,
            Layout::Mn128 => {
                let chunk = (row % 64 / 8) ^ (k % 8);
                row / 64 * 2048 + k / 8 * 1024 + k % 8 * 128 + chunk * 16 + row % 8 * 2
            }
            Layout::MnPlain => row / 8 * 256 + k / 8 * 128 + k % 8 * 16 + row % 8 * 2,
        }
    }

    /// Leading and stride offsets in bytes, and the swizzle's code.
    fn descriptor(self) -> u64 {
        let (leading, stride, swizzle) = match self {
            Layout::KPlain => (128, 256, 0),
            Layout::K128 => (16, 1024, 1),
            Layout::Mn128 => (2048, 1024, 1),
            // Without a swizzle the stride is that along the rows.
            Layout::MnPlain => (128, 256, 0),
        };
        swizzle << 62 | (stride >> 4) << 32 | (leading >> 4) << 16
    }

    fn fill(self, values: &[f32], rows: usize) -> Vec<u8> {
        let mut out = vec![0; 16384];
        for row in 0..rows {
            for k in 0..16 {
                let bits = bf16::from_f32(values[row * 16 + k]).to_le_bytes();
                out[self.at(row, k)..][..2].copy_from_slice(&bits);
            }
        }
        out
    }
}

/// One product of 64 by n by 16, operands copied in by bulk.
fn text(n: usize, a: Option<Layout>, b: Layout) -> String {
    let names: Vec<String> = (0..n / 2).map(|i| format!("%acc{i}")).collect();
    let list = names.join(", ");
    let zero: String = names.iter().map(|r| format!("mov.b32 {r}, 0;\n")).collect();
    let store: String = names
        .iter()
        .enumerate()
        .map(|(i, r)| format!("st.global.b32 [%d3+{}], {r};\n", 4 * i))
        .collect();
    let (a_operand, a_transposed) = match a {
        None => ("{%a0, %a1, %a2, %a3}", String::new()),
        Some(layout) => ("%d5", format!(", {}", u8::from(layout.is_transposed()))),
    };
    // A from row-major global memory, as the ISA draws the fragment.
    let fragment: String = (0..4)
        .map(|i| {
            let at = (i % 2) * 8 * 32 + (i / 2) * 16;
            format!("ld.global.b32 %a{i}, [%d8+{at}];\n")
        })
        .collect();
    let a_bits = a.map_or(0, Layout::descriptor);
    format!(
        ".version 8.3\n.target sm_90a\n.address_size 64
.extern .shared .align 1024 .b8 smem[];
.visible .entry k(.param .u64 a, .param .u64 b, .param .u64 rows_of_a, .param .u64 out)
.reqntid 128
{{
.reg .pred %p<4>;\n.reg .b32 %r<20>;\n.reg .b64 %d<12>;\n.reg .b32 %acc<{}>;\n.reg .b32 %a<4>;
mov.u32 %r1, %tid.x;
mov.b32 %r2, smem;
add.s32 %r3, %r2, 32768;
setp.ne.u32 %p1, %r1, 0;
@%p1 bra READY;
mbarrier.init.shared::cta.b64 [%r3], 1;
fence.mbarrier_init.release.cluster;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r3], 32768;
ld.param.b64 %d1, [a];
ld.param.b64 %d2, [b];
add.s32 %r4, %r2, 16384;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%d1], 16384, [%r3];
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r4], [%d2], 16384, [%r3];
READY:
bar.sync 0;
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r3], 0;
@!%p2 bra WAIT;
shr.u32 %r5, %r2, 4;
cvt.u64.u32 %d4, %r5;
or.b64 %d5, %d4, {a_bits};
add.s64 %d6, %d4, 1024;
or.b64 %d6, %d6, {};
ld.param.b64 %d7, [rows_of_a];
shr.u32 %r6, %r1, 5;
shl.b32 %r6, %r6, 4;
and.b32 %r7, %r1, 31;
shr.u32 %r8, %r7, 2;
add.s32 %r6, %r6, %r8;
shl.b32 %r6, %r6, 5;
and.b32 %r9, %r7, 3;
shl.b32 %r9, %r9, 2;
add.s32 %r6, %r6, %r9;
cvt.u64.u32 %d9, %r6;
add.s64 %d8, %d7, %d9;
{fragment}{zero}wgmma.fence.sync.aligned;
wgmma.mma_async.sync.aligned.m64n{n}k16.f32.bf16.bf16 {{{list}}}, \
{a_operand}, %d6, 1, 1, -1{a_transposed}, {};
wgmma.commit_group.sync.aligned;
wgmma.wait_group.sync.aligned 0;
ld.param.b64 %d3, [out];
mul.wide.u32 %d10, %r1, {};
add.s64 %d3, %d3, %d10;
{store}ret;
}}
",
        n / 2,
        b.descriptor(),
        u8::from(b.is_transposed()),
        2 * n,
    )
}

fn product(n: usize, a_layout: Option<Layout>, b_layout: Layout) -> Result<(), Error> {
    let module = Module::load(&text(n, a_layout, b_layout))?;
    let (a, b) = (whole(64 * 16, 1), whole(n * 16, 2));
    for completion in [Completion::Eager, Completion::Lazy] {
        let mut device = Device::new();
        let pa = device.alloc_from(&a_layout.unwrap_or(Layout::K128).fill(&a, 64));
        let pb = device.alloc_from(&b_layout.fill(&b, n));
        let rows = device.alloc_from(&bf16_bytes(&a));
        let out = device.alloc(128 * 2 * n);
        let mut launch = Launch::new(1, 128);
        launch.dynamic_shared_bytes = 32768 + 8;
        launch.completion = completion;
        let args = [Arg::Ptr(pa), Arg::Ptr(pb), Arg::Ptr(rows), Arg::Ptr(out)];
        device.launch(&module, "k", &launch, &args)?;
        for row in 0..64 {
            for col in 0..n {
                let sum: f32 = (0..16).map(|k| a[row * 16 + k] * b[col * 16 + k]).sum();
                // Thread and register of an element of D, as the ISA draws it.
                let thread = row / 16 * 32 + row % 8 * 4 + col % 8 / 2;
                let register = col / 8 * 4 + row % 16 / 8 * 2 + col % 2;
                let at = out + (thread * 2 * n + 4 * register) as u64;
                let got = f32::from_le_bytes(device.read(at, 4)?.try_into().expect("four bytes"));
                // The scale of B is -1.
                assert_eq!(got, -sum, "n {n}, {a_layout:?}, {b_layout:?}: {row}, {col}");
            }
        }
    }
    Ok(())
}

#[test]
fn tiles_of_every_layout_multiply() {
    for a in [Layout::KPlain, Layout::K128, Layout::Mn128, Layout::MnPlain] {
        for b in [Layout::KPlain, Layout::K128, Layout::Mn128, Layout::MnPlain] {
            product(64, Some(a), b).unwrap_or_else(|e| panic!("{a:?} {b:?}: {e}"));
        }
    }
}

#[test]
fn a_comes_from_registers_too() {
    for b in [Layout::K128, Layout::Mn128] {
        product(64, None, b).unwrap_or_else(|e| panic!("{b:?}: {e}"));
    }
}

#[test]
fn every_width_multiplies() {
    for n in [8, 24, 40, 96, 104, 128] {
        product(n, Some(Layout::K128), Layout::K128).unwrap_or_else(|e| panic!("{n}: {e}"));
    }
}

#[test]
fn a_register_of_a_changed_in_flight_is_found() {
    let text = text(8, None, Layout::K128)
        .replace("wgmma.commit_group", "mov.b32 %a1, 0;\nwgmma.commit_group");
    let module = Module::load(&text).expect("known");
    let mut device = Device::new();
    let p = device.alloc_from(&vec![0; 16384]);
    let mut launch = Launch::new(1, 128);
    launch.dynamic_shared_bytes = 32768 + 8;
    let args = [Arg::Ptr(p), Arg::Ptr(p), Arg::Ptr(p), Arg::Ptr(p)];
    let error = device.launch(&module, "k", &launch, &args).unwrap_err();
    assert_eq!(error.kind, ErrorKind::MissingWait, "{error}");
    assert!(error.message.contains("writes a register"), "{error}");
}

/// Four 8x8 tiles through stmatrix and ldmatrix, either of them transposed.
#[test]
fn matrices_are_stored_and_loaded() {
    for (store, load) in [("", ""), (".trans", ""), ("", ".trans"), (".trans", ".trans")] {
        let text = format!(
            ".version 8.3\n.target sm_90a\n.address_size 64
.shared .align 16 .b8 tiles[512];
.visible .entry k(.param .u64 x, .param .u64 y)
{{
.reg .b32 %r<20>;\n.reg .b64 %d<8>;
mov.u32 %r1, %tid.x;
ld.param.b64 %d1, [x];
ld.param.b64 %d2, [y];
mul.wide.u32 %d3, %r1, 16;
add.s64 %d1, %d1, %d3;
add.s64 %d2, %d2, %d3;
ld.global.v4.b32 {{%r2, %r3, %r4, %r5}}, [%d1];
mov.b32 %r10, tiles;
mad.lo.s32 %r11, %r1, 16, %r10;
stmatrix.sync.aligned.m8n8.x4{store}.shared.b16 [%r11], {{%r2, %r3, %r4, %r5}};
bar.warp.sync -1;
ldmatrix.sync.aligned.m8n8.x4{load}.shared.b16 {{%r6, %r7, %r8, %r9}}, [%r11];
st.global.v4.b32 [%d2], {{%r6, %r7, %r8, %r9}};
ret;
}}"
        );
        let module = Module::load(&text).expect("known");
        let mut device = Device::new();
        let x: Vec<u16> = (0..256).map(|i| i * 3 + 1).collect();
        let px = device.alloc_from(&x.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<_>>());
        let py = device.alloc(512);
        let args = [Arg::Ptr(px), Arg::Ptr(py)];
        device.launch(&module, "k", &Launch::new(1, 32), &args).unwrap_or_else(|e| panic!("{e}"));
        let y = device.read(py, 512).expect("allocated");
        // Element (r, c) of tile t is half c % 2 of register t of lane 4r + c / 2.
        let place = |t: usize, r: usize, c: usize| (4 * r + c / 2) * 8 + 2 * t + c % 2;
        for t in 0..4 {
            for r in 0..8 {
                for c in 0..8 {
                    let at = 2 * place(t, r, c);
                    let got = u16::from_le_bytes([y[at], y[at + 1]]);
                    let turned = store.is_empty() != load.is_empty();
                    let from = if turned { place(t, c, r) } else { place(t, r, c) };
                    assert_eq!(got, x[from], "tile {t}, {r}, {c}, `{store}` `{load}`");
                }
            }
        }
    }
}
