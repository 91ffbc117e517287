//! Launches of different streams that touch the same memory are ordered by events, or told.

use ptx_sim::{Arg, Device, ErrorKind, Launch, Module};

/// Each thread adds its word of `a` to its word of `b`.
fn add() -> Module {
    Module::load(
        ".version 8.3 .target sm_90a .address_size 64
         .visible .entry add(.param .u64 a, .param .u64 b) {
             .reg .b32 %r<4>; .reg .b64 %d<6>;
             ld.param.b64 %d1, [a];
             ld.param.b64 %d2, [b];
             mov.u32 %r1, %tid.x;
             mul.wide.u32 %d3, %r1, 4;
             add.s64 %d4, %d1, %d3;
             add.s64 %d5, %d2, %d3;
             ld.global.b32 %r2, [%d4];
             ld.global.b32 %r3, [%d5];
             add.s32 %r3, %r3, %r2;
             st.global.b32 [%d5], %r3;
             ret;
         }",
    )
    .expect("it is known PTX")
}

struct Bench {
    device: Device,
    module: Module,
}

impl Bench {
    fn add(&mut self, stream: u32, a: u64, b: u64) -> Result<(), String> {
        let launch = Launch { stream, ..Launch::new(1, 8) };
        let args = [Arg::Ptr(a), Arg::Ptr(b)];
        let done = self.device.launch(&self.module, "add", &launch, &args);
        done.map(|_| ()).map_err(|e| {
            assert_eq!(e.kind, ErrorKind::Race, "{e}");
            e.to_string()
        })
    }
}

fn bench() -> (Bench, [u64; 4]) {
    let mut device = Device::new();
    let at = [0; 4].map(|_| device.alloc(32));
    (Bench { device, module: add() }, at)
}

/// x + y on stream 0 beside x + z on stream 1, then y + z.
fn fork_and_join(forks: bool, joins: bool) -> Result<(), String> {
    let (mut b, [w, x, y, z]) = bench();
    // What came before a fork is known to who waits for it.
    b.add(0, w, x)?;
    b.device.record(7, 0);
    if forks {
        b.device.wait(7, 1).unwrap();
    }
    b.add(0, x, y)?;
    b.add(1, x, z)?;
    b.device.record(8, 1);
    if joins {
        b.device.wait(8, 0).unwrap();
    }
    b.add(0, y, z)
}

#[test]
fn what_events_order_runs() {
    fork_and_join(true, true).unwrap();
}

#[test]
fn a_missing_fork_is_told() {
    let why = fork_and_join(false, true).unwrap_err();
    assert!(why.contains("add on stream 1") && why.contains("no event orders them"), "{why}");
}

#[test]
fn a_missing_join_is_told() {
    let why = fork_and_join(true, false).unwrap_err();
    assert!(why.contains("add on stream 0 overwrites"), "{why}");
    assert!(why.contains("which add on stream 1 wrote"), "{why}");
}

/// An event says what was done when it was recorded, not what came after.
#[test]
fn work_after_the_event_is_not_known() {
    let (mut b, [_, x, y, z]) = bench();
    b.device.record(0, 0);
    b.add(0, x, y).unwrap();
    b.device.wait(0, 1).unwrap();
    b.add(1, x, z).unwrap();
    let why = b.add(1, y, z).unwrap_err();
    assert!(why.contains("reads") && why.contains("which add on stream 0 wrote"), "{why}");
}

/// What the host has waited for comes before whatever it asks for next, and before nothing else.
#[test]
fn the_host_orders_streams_too() {
    let (mut b, [w, x, y, z]) = bench();
    b.device.record(0, 0);
    b.device.wait(0, 1).unwrap();
    b.add(1, x, y).unwrap();
    b.device.synchronize(1);
    b.add(0, y, z).unwrap();
    b.add(0, y, x).unwrap();
    b.device.synchronize(1);
    let why = b.add(1, x, w).unwrap_err();
    assert!(why.contains("which add on stream 0 wrote"), "{why}");
    b.device.synchronize(0);
    b.add(1, x, w).unwrap();
}

/// Copies are in a stream's order as launches are, and what others read is not overwritten.
#[test]
fn copies_are_ordered_too() {
    let (mut b, [_, x, y, _]) = bench();
    b.device.record(0, 0);
    b.device.wait(0, 1).unwrap();
    b.add(1, x, y).unwrap();
    let why = b.device.write_on(0, x, &[0; 4]).unwrap_err().to_string();
    assert!(why.contains("a copy to it on stream 0 overwrites"), "{why}");
    assert!(why.contains("which add on stream 1 read"), "{why}");
    b.device.record(1, 1);
    b.device.wait(1, 0).unwrap();
    b.device.write_on(0, x, &[0; 4]).unwrap();
    assert!(b.device.read_on(0, y, 4).is_ok());
    assert!(b.device.wait(5, 0).is_err());
}
