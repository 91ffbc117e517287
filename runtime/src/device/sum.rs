//! The one kernel of the runtime itself: sums of f32, which collectives between devices are made
//! of. All others come with a graph.

use weft_graph::{ObjectId, PtxCode};

/// `to[i] = x[i] + y[i]`, or `x[i] + 0` where there is no y, for `i < n`.
pub(super) const NAME: &str = "sm90_add_f32";

pub(super) const THREADS: u32 = 256;

pub(super) const TEXT: &str = "
.version 8.3
.target sm_90a
.address_size 64
.visible .entry sm90_add_f32(.param .u64 to, .param .u64 x, .param .u64 y, .param .u64 n)
.reqntid 256
{
    .reg .pred %p<3>;
    .reg .b32 %r<7>;
    .reg .b64 %d<11>;
    ld.param.b64 %d1, [to];
    ld.param.b64 %d2, [x];
    ld.param.b64 %d3, [y];
    ld.param.b64 %d4, [n];
    mov.u32 %r1, %ctaid.x;
    mov.u32 %r2, %tid.x;
    mul.wide.u32 %d5, %r1, 256;
    cvt.u64.u32 %d6, %r2;
    add.s64 %d5, %d5, %d6;
    setp.ge.s64 %p1, %d5, %d4;
    @%p1 bra $L__DONE;
    shl.b64 %d7, %d5, 2;
    add.s64 %d8, %d2, %d7;
    ld.global.b32 %r3, [%d8];
    mov.b32 %r4, 0;
    setp.eq.s64 %p2, %d3, 0;
    @%p2 bra $L__ADD;
    add.s64 %d9, %d3, %d7;
    ld.global.b32 %r4, [%d9];
$L__ADD:
    add.rn.f32 %r5, %r3, %r4;
    add.s64 %d10, %d1, %d7;
    st.global.b32 [%d10], %r5;
$L__DONE:
    ret;
}
";

pub(super) fn code() -> PtxCode {
    PtxCode {
        object: ObjectId(0),
        threads: THREADS,
        dynamic_shared_bytes: 0,
        cluster: None,
        begins_early: false,
        hopper14: false,
        maps: vec![],
    }
}

/// CTAs for so many elements.
pub(super) fn grid(n: usize) -> i64 {
    n.div_ceil(THREADS as usize) as i64
}
