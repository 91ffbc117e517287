//! Copies by TMA and in bulk, clusters, and what must come before and after them.

use ptx_sim::{
    Arg, Completion, Device, Element, Error, ErrorKind, Launch, Module, Swizzle, TensorMap,
};

const MODES: [Completion; 3] =
    [Completion::Eager, Completion::Lazy, Completion::Random { seed: 3, delay_max: 20 }];

fn module(params: &str, body: &str) -> Module {
    let text = format!(
        ".version 8.3\n.target sm_90a\n.address_size 64\n\
         .extern .shared .align 1024 .b8 smem[];\n\
         .visible .entry k({params})\n{{\n.reg .pred %p<10>;\n.reg .b16 %h<8>;\n\
         .reg .b32 %r<40>;\n.reg .b64 %d<20>;\n{body}\nret;\n}}\n"
    );
    Module::load(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

fn u16s(n: usize) -> Vec<u16> {
    (0..n).map(|i| (i * 7919 % 65521) as u16).collect()
}

fn bytes_of(values: &[u16]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn read_u16(device: &Device, address: u64, n: usize) -> Vec<u16> {
    let bytes = device.read(address, 2 * n).expect("allocated");
    bytes.chunks(2).map(|c| u16::from_le_bytes([c[0], c[1]])).collect()
}

/// Thread 0 loads a box, then stores it through a second map at other coordinates.
fn round_trip(rank: usize) -> String {
    let at = |first: usize| {
        let names: Vec<String> = (0..rank).map(|i| format!("%r{}", first + i)).collect();
        names.join(", ")
    };
    let load: String =
        (0..10).map(|i| format!("ld.param.b32 %r{}, [at+{}];\n", 10 + i, 4 * i)).collect();
    format!(
        "mov.b32 %r1, smem;
mov.u32 %r3, %tid.x;
setp.ne.u32 %p1, %r3, 0;
@%p1 bra DONE;
ld.param.b32 %r4, [size];
add.s32 %r2, %r1, 32768;
mbarrier.init.shared::cta.b64 [%r2], 1;
fence.mbarrier_init.release.cluster;
{load}mov.b64 %d1, from;
mov.b64 %d2, to;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], %r4;
cp.async.bulk.tensor.{rank}d.shared::cluster.global.mbarrier::complete_tx::bytes \
[%r1], [%d1, {{{}}}], [%r2];
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;
@!%p2 bra WAIT;
cp.async.bulk.tensor.{rank}d.global.shared::cta.bulk_group [%d2, {{{}}}], [%r1];
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
DONE:",
        at(10),
        at(15),
    )
}

struct Trip {
    dims: Vec<u64>,
    box_dims: Vec<u32>,
    swizzles: [Swizzle; 2],
    from: Vec<i32>,
    to: Vec<i32>,
}

/// Rows as TMA needs them: a multiple of 16 bytes.
fn strides(dims: &[u64]) -> Vec<u64> {
    let mut bytes = (dims[0] * 2).next_multiple_of(16);
    let mut out = vec![];
    for dim in &dims[1..] {
        out.push(bytes);
        bytes *= dim;
    }
    out
}

fn index_of(dims: &[u64], strides: &[u64], at: &[i64]) -> Option<usize> {
    let inside = at.iter().zip(dims).all(|(i, d)| (0..*d as i64).contains(i));
    let outer: i64 = at[1..].iter().zip(strides).map(|(i, s)| i * *s as i64).sum();
    inside.then_some((at[0] + outer / 2) as usize)
}

impl Trip {
    fn check(&self) {
        let rank = self.dims.len();
        let strides = strides(&self.dims);
        let total = self.dims[1..].iter().zip(&strides).map(|(d, s)| d * s).max();
        let total = total.unwrap_or(self.dims[0] * 2) as usize / 2;
        let x = u16s(total);
        let params = ".param .align 64 .b8 from[128], .param .align 64 .b8 to[128], \
                      .param .align 4 .b8 at[40], .param .u32 size";
        let module = module(params, &round_trip(rank));
        for completion in MODES {
            let mut device = Device::new();
            let (px, py) = (device.alloc_from(&bytes_of(&x)), device.alloc(2 * total));
            let map = |address: u64, swizzle: Swizzle| TensorMap {
                element: Element::U16,
                address,
                dims: self.dims.clone(),
                strides_bytes: strides.clone(),
                box_dims: self.box_dims.clone(),
                swizzle,
                fills_nan: false,
            };
            let (from, to) = (map(px, self.swizzles[0]), map(py, self.swizzles[1]));
            let size = from.box_bytes() as u32;
            let mut at = [0i32; 10];
            at[..rank].copy_from_slice(&self.from);
            at[5..5 + rank].copy_from_slice(&self.to);
            let at = Arg::Bytes(at.iter().flat_map(|v| v.to_le_bytes()).collect());
            let args = [Arg::TensorMap(from), Arg::TensorMap(to), at, Arg::U32(size)];
            let mut launch = Launch::new(1, 32);
            launch.dynamic_shared_bytes = 32768 + 8;
            launch.completion = completion;
            device.launch(&module, "k", &launch, &args).unwrap_or_else(|e| panic!("{e}"));
            let mut want = vec![0u16; total];
            let n: u32 = self.box_dims.iter().product();
            for linear in 0..n {
                let mut rest = linear;
                let (mut source, mut target) = (vec![], vec![]);
                for (i, &size) in self.box_dims.iter().enumerate() {
                    let inner = i64::from(rest % size);
                    rest /= size;
                    source.push(i64::from(self.from[i]) + inner);
                    target.push(i64::from(self.to[i]) + inner);
                }
                if let Some(to) = index_of(&self.dims, &strides, &target) {
                    let from = index_of(&self.dims, &strides, &source);
                    want[to] = from.map_or(0, |from| x[from]);
                }
            }
            assert_eq!(read_u16(&device, py, total), want, "{rank} dimensions, {completion:?}");
        }
    }
}

#[test]
fn boxes_of_one_to_five_dimensions_move_with_zeros_outside() {
    let plain = [Swizzle::None; 2];
    let trip = |dims: &[u64], box_dims: &[u32], from: &[i32], to: &[i32]| Trip {
        dims: dims.to_vec(),
        box_dims: box_dims.to_vec(),
        swizzles: plain,
        from: from.to_vec(),
        to: to.to_vec(),
    };
    trip(&[100], &[64], &[70], &[3]).check();
    trip(&[50, 20], &[16, 8], &[40, -3], &[10, 15]).check();
    trip(&[24, 5, 6], &[8, 4, 3], &[-4, 2, 4], &[20, 0, 1]).check();
    trip(&[16, 3, 4, 3], &[8, 2, 3, 2], &[2, 2, -1, 2], &[0, 0, 0, 0]).check();
    trip(&[16, 3, 2, 3, 2], &[16, 2, 2, 2, 2], &[1, 1, 0, 2, 1], &[-3, 0, 1, 0, 0]).check();
}

#[test]
fn swizzles_undo_themselves() {
    for (swizzle, inner) in [(Swizzle::B32, 16), (Swizzle::B64, 32), (Swizzle::B128, 64)] {
        Trip {
            dims: vec![80, 40],
            box_dims: vec![inner, 24],
            swizzles: [swizzle; 2],
            from: vec![3, 10],
            to: vec![30, 1],
        }
        .check();
    }
}

/// What a load with a swizzle leaves in shared memory, chunk by chunk.
#[test]
fn a_swizzled_box_lies_in_permuted_chunks() {
    let body = round_trip(2).replace(
        "cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%d2, {%r15, %r16}], [%r1];",
        "ld.param.b64 %d3, [out];\ncp.async.bulk.global.shared::cta.bulk_group [%d3], [%r1], %r4;",
    );
    let params = ".param .align 64 .b8 from[128], .param .align 64 .b8 to[128], \
                  .param .align 4 .b8 at[40], .param .u32 size, .param .u64 out";
    let module = module(params, &body);
    for (swizzle, inner, rows_per_step) in
        [(Swizzle::B128, 64usize, 1), (Swizzle::B64, 32, 2), (Swizzle::B32, 16, 4)]
    {
        let mut device = Device::new();
        let x = u16s(inner * 16);
        let px = device.alloc_from(&bytes_of(&x));
        let out = device.alloc(2 * x.len());
        let map = TensorMap {
            element: Element::U16,
            address: px,
            dims: vec![inner as u64, 16],
            strides_bytes: vec![2 * inner as u64],
            box_dims: vec![inner as u32, 16],
            swizzle,
            fills_nan: false,
        };
        let args = [
            Arg::TensorMap(map.clone()),
            Arg::TensorMap(map.clone()),
            Arg::Bytes(vec![0; 40]),
            Arg::U32(map.box_bytes() as u32),
            Arg::Ptr(out),
        ];
        let mut launch = Launch::new(1, 32);
        launch.dynamic_shared_bytes = 32768 + 8;
        device.launch(&module, "k", &launch, &args).unwrap_or_else(|e| panic!("{e}"));
        let got = read_u16(&device, out, x.len());
        let n_chunks = inner / 8;
        for row in 0..16 {
            for chunk in 0..n_chunks {
                let moved = chunk ^ (row / rows_per_step % n_chunks);
                let (from, to) = (row * inner + chunk * 8, row * inner + moved * 8);
                assert_eq!(got[to..to + 8], x[from..from + 8], "{swizzle:?} {row} {chunk}");
            }
        }
    }
}

/// Every thread writes four bytes of shared memory; thread 0 stores them in bulk.
const STORE: &str = "
mov.b32 %r1, smem;
mov.u32 %r3, %tid.x;
shl.b32 %r4, %r3, 2;
add.s32 %r5, %r1, %r4;
mul.lo.s32 %r6, %r3, 3;
st.shared.b32 [%r5], %r6;
fence.proxy.async.shared::cta;
bar.sync 0;
setp.ne.u32 %p1, %r3, 0;
@%p1 bra DONE;
ld.param.b64 %d1, [y];
cp.async.bulk.global.shared::cta.bulk_group [%d1], [%r1], 256;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group.read 0;
DONE:";

fn store(body: &str) -> Result<Vec<u8>, Error> {
    let module = module(".param .u64 y", body);
    let mut device = Device::new();
    let y = device.alloc(256);
    let mut launch = Launch::new(1, 64);
    launch.dynamic_shared_bytes = 512;
    device.launch(&module, "k", &launch, &[Arg::Ptr(y)])?;
    Ok(device.read(y, 256)?.to_vec())
}

#[test]
fn shared_memory_is_stored_in_bulk() {
    let bytes = store(STORE).expect("runs");
    let want: Vec<u8> = (0..64u32).flat_map(|t| (3 * t).to_le_bytes()).collect();
    assert_eq!(bytes, want);
}

#[test]
fn a_store_without_its_proxy_fence_is_found() {
    let error = store(&STORE.replace("fence.proxy.async.shared::cta;", "")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::MissingFence, "{error}");
    // After the barrier the issuing thread may fence for all that the barrier has ordered.
    let late = STORE
        .replace("fence.proxy.async.shared::cta;", "")
        .replace("@%p1 bra DONE;", "@%p1 bra DONE;\nfence.proxy.async.shared::cta;");
    assert!(store(&late).is_ok());
}

#[test]
fn a_store_without_its_barrier_is_found() {
    let error = store(&STORE.replace("bar.sync 0;", "")).unwrap_err();
    // The copy misses the other warp's store, or that store overtakes the copy.
    assert!(matches!(error.kind, ErrorKind::Race | ErrorKind::MissingWait), "{error}");
}

#[test]
fn an_exit_before_the_store_has_read_is_found() {
    let error = store(&STORE.replace("cp.async.bulk.wait_group.read 0;", "")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::MissingWait, "{error}");
    let reused = STORE.replace(
        "cp.async.bulk.wait_group.read 0;",
        "st.shared.b32 [%r1], %r3;\ncp.async.bulk.wait_group.read 0;",
    );
    let error = store(&reused).unwrap_err();
    assert_eq!(error.kind, ErrorKind::MissingWait, "{error}");
}

#[test]
fn bulk_reductions_add() {
    let body = STORE.replace(
        "cp.async.bulk.global.shared::cta.bulk_group [%d1]",
        "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%d1]",
    );
    let module = module(".param .u64 y", &body);
    let mut device = Device::new();
    let start: Vec<u8> = (0..64u32).flat_map(|t| (1000 + t).to_le_bytes()).collect();
    let y = device.alloc_from(&start);
    let mut launch = Launch::new(4, 64);
    launch.dynamic_shared_bytes = 512;
    device.launch(&module, "k", &launch, &[Arg::Ptr(y)]).unwrap_or_else(|e| panic!("{e}"));
    let want: Vec<u8> = (0..64u32).flat_map(|t| (1000 + t + 4 * 3 * t).to_le_bytes()).collect();
    assert_eq!(device.read(y, 256).expect("allocated"), want);
}

/// Each CTA of a cluster of two writes its number into the other's shared memory and arrives there.
const NEIGHBOUR: &str = "
mov.b32 %r1, smem;
mov.u32 %r2, %tid.x;
mov.u32 %r3, %cluster_ctarank;
xor.b32 %r4, %r3, 1;
add.s32 %r5, %r1, 1024;
setp.ne.u32 %p1, %r2, 0;
@%p1 bra READY;
mbarrier.init.shared::cta.b64 [%r5], 32;
fence.mbarrier_init.release.cluster;
READY:
barrier.cluster.arrive.release.aligned;
barrier.cluster.wait.acquire.aligned;
shl.b32 %r6, %r2, 2;
add.s32 %r7, %r1, %r6;
mapa.shared::cluster.u32 %r8, %r7, %r4;
mad.lo.s32 %r9, %r3, 100, %r2;
st.shared::cluster.b32 [%r8], %r9;
mapa.shared::cluster.u32 %r10, %r5, %r4;
mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r10];
WAIT:
mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p2, [%r5], 0;
@!%p2 bra WAIT;
ld.shared.b32 %r11, [%r7];
ld.param.b64 %d1, [y];
mad.lo.s32 %r12, %r3, 32, %r2;
mul.wide.u32 %d2, %r12, 4;
add.s64 %d3, %d1, %d2;
st.global.b32 [%d3], %r11;
barrier.cluster.arrive.aligned;
barrier.cluster.wait.aligned;";

fn neighbour(body: &str) -> Result<Vec<u8>, Error> {
    let module = module(".param .u64 y", body);
    let mut device = Device::new();
    let y = device.alloc(256);
    let mut launch = Launch::new(2, 32);
    launch.cluster = [2, 1, 1];
    launch.dynamic_shared_bytes = 1032;
    device.launch(&module, "k", &launch, &[Arg::Ptr(y)])?;
    Ok(device.read(y, 256)?.to_vec())
}

#[test]
fn ctas_of_a_cluster_write_to_one_another() {
    let bytes = neighbour(NEIGHBOUR).unwrap_or_else(|e| panic!("{e}"));
    let want: Vec<u8> = [100u32, 0]
        .iter()
        .flat_map(|base| (0..32u32).flat_map(move |t| (base + t).to_le_bytes()))
        .collect();
    assert_eq!(bytes, want);
}

#[test]
fn faults_across_a_cluster_are_found() {
    let wait = "@!%p2 bra WAIT;";
    let error = neighbour(&NEIGHBOUR.replace(wait, "")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Race, "{error}");
    let first = "barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;\n";
    let error = neighbour(&NEIGHBOUR.replace(first, "")).unwrap_err();
    assert!(matches!(error.kind, ErrorKind::Race | ErrorKind::Barrier), "{error}");
    let own = NEIGHBOUR.replace("st.shared::cluster.b32 [%r8]", "st.shared.b32 [%r8]");
    let error = neighbour(&own).unwrap_err();
    assert_eq!(error.kind, ErrorKind::OutOfBounds, "{error}");
}

/// CTA 0 of two loads a box for both.
#[test]
fn a_multicast_load_reaches_every_cta_of_its_mask() {
    let body = "
mov.b32 %r1, smem;
mov.u32 %r2, %tid.x;
mov.u32 %r3, %cluster_ctarank;
add.s32 %r5, %r1, 1024;
setp.ne.u32 %p1, %r2, 0;
@%p1 bra READY;
mbarrier.init.shared::cta.b64 [%r5], 1;
fence.mbarrier_init.release.cluster;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r5], 128;
READY:
barrier.cluster.arrive.release.aligned;
barrier.cluster.wait.acquire.aligned;
or.b32 %r4, %r2, %r3;
setp.ne.u32 %p1, %r4, 0;
@%p1 bra WAIT;
mov.b64 %d1, from;
mov.b16 %h1, 3;
cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster \
[%r1], [%d1, {8}], [%r5], %h1;
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r5], 0;
@!%p2 bra WAIT;
shl.b32 %r6, %r2, 2;
add.s32 %r7, %r1, %r6;
ld.shared.b32 %r11, [%r7];
ld.param.b64 %d4, [y];
mad.lo.s32 %r12, %r3, 32, %r2;
mul.wide.u32 %d2, %r12, 4;
add.s64 %d3, %d4, %d2;
st.global.b32 [%d3], %r11;
barrier.cluster.arrive.aligned;
barrier.cluster.wait.aligned;";
    let module = module(".param .align 64 .b8 from[128], .param .u64 y", body);
    for completion in MODES {
        let mut device = Device::new();
        let x: Vec<u8> = (0..64u32).flat_map(|i| (i * i).to_le_bytes()).collect();
        let address = device.alloc_from(&x);
        let y = device.alloc(256);
        let map = TensorMap {
            element: Element::U32,
            address,
            dims: vec![64],
            strides_bytes: vec![],
            box_dims: vec![32],
            swizzle: Swizzle::None,
            fills_nan: false,
        };
        let mut launch = Launch::new(2, 32);
        launch.cluster = [2, 1, 1];
        launch.dynamic_shared_bytes = 1032;
        launch.completion = completion;
        let args = [Arg::TensorMap(map), Arg::Ptr(y)];
        device.launch(&module, "k", &launch, &args).unwrap_or_else(|e| panic!("{e}"));
        let want: Vec<u8> = (0..64u32).flat_map(|i| ((8 + i % 32).pow(2)).to_le_bytes()).collect();
        assert_eq!(device.read(y, 256).expect("allocated"), want);
    }
}

/// A map in global memory is given a new address, and used.
const REPLACE: &str = "
mov.b32 %r1, smem;
mov.u32 %r3, %tid.x;
setp.ne.u32 %p1, %r3, 0;
@%p1 bra DONE;
add.s32 %r2, %r1, 1024;
ld.param.b64 %d1, [map];
ld.param.b64 %d2, [x];
ld.param.b64 %d3, [y];
tensormap.replace.tile.global_address.global.b1024.b64 [%d1], %d2;
tensormap.replace.tile.global_dim.global.b1024.b32 [%d1], 0, 20;
fence.proxy.tensormap::generic.release.gpu;
fence.proxy.tensormap::generic.acquire.gpu [%d1], 128;
mbarrier.init.shared::cta.b64 [%r2], 1;
fence.mbarrier_init.release.cluster;
mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r2], 128;
cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes \
[%r1], [%d1, {0}], [%r2];
WAIT:
mbarrier.try_wait.parity.shared::cta.b64 %p2, [%r2], 0;
@!%p2 bra WAIT;
cp.async.bulk.global.shared::cta.bulk_group [%d3], [%r1], 128;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
DONE:";

fn replace(body: &str) -> Result<Vec<u8>, Error> {
    let module = module(".param .u64 map, .param .u64 x, .param .u64 y", body);
    let mut device = Device::new();
    let x: Vec<u8> = (0..32u32).flat_map(|i| (i + 7).to_le_bytes()).collect();
    let (old, new) = (device.alloc(128), device.alloc_from(&x));
    let map = TensorMap {
        element: Element::U32,
        address: old,
        dims: vec![32],
        strides_bytes: vec![],
        box_dims: vec![32],
        swizzle: Swizzle::None,
        fills_nan: false,
    };
    let map = device.alloc_from(&map.encode()?);
    let y = device.alloc(128);
    let mut launch = Launch::new(1, 32);
    launch.dynamic_shared_bytes = 1032;
    device.launch(&module, "k", &launch, &[Arg::Ptr(map), Arg::Ptr(new), Arg::Ptr(y)])?;
    Ok(device.read(y, 128)?.to_vec())
}

#[test]
fn a_replaced_map_is_used_after_its_fence() {
    let want: Vec<u8> =
        (0..32u32).flat_map(|i| if i < 20 { i + 7 } else { 0 }.to_le_bytes()).collect();
    assert_eq!(replace(REPLACE).unwrap_or_else(|e| panic!("{e}")), want);
    let acquire = "fence.proxy.tensormap::generic.acquire.gpu [%d1], 128;\n";
    let error = replace(&REPLACE.replace(acquire, "")).unwrap_err();
    assert_eq!(error.kind, ErrorKind::MissingFence, "{error}");
}
