//! One wrong graph for each thing the verifier checks.

mod sample;

use weft_graph::*;

fn check(damage: impl FnOnce(&mut Graph), expect: &str) {
    let mut graph = sample::graph();
    damage(&mut graph);
    assert_eq!(graph.verify().unwrap_err().to_string(), expect);
}

fn entry(graph: &mut Graph) -> &mut Entry {
    &mut graph.entries[0]
}

fn launch(graph: &mut Graph) -> &mut Launch {
    let Step::Loop(layers) = &mut entry(graph).steps[0] else { unreachable!() };
    let Step::Launch(launch) = &mut layers.body[0] else { unreachable!() };
    launch
}

#[test]
fn the_sample_is_right() {
    assert_eq!(sample::graph().verify(), Ok(()));
}

#[test]
fn names_are_unique() {
    check(|g| entry(g).buffers[0].name = "h".into(), "entry eval: has two of buffer h");
    check(|g| entry(g).dims[0].name = "S".into(), "entry eval: has two of dim S");
    check(
        |g| {
            let first = g.kernels[0].clone();
            g.kernels.push(first);
        },
        "graph: has two of kernel f32_scale",
    );
}

#[test]
fn ids_are_in_range() {
    check(
        |g| launch(g).kernel = KernelId(1),
        "entry eval, step layers.mlp: launches kernel 1 of 1",
    );
    check(
        |g| launch(g).args[0].buffer = BufferId(70),
        "entry eval, step layers.mlp: uses buffer 70, which is not there",
    );
    check(|g| g.objects.clear(), "kernel f32_scale: names object 0 of 0");
    check(|g| g.kernels[0].variants.clear(), "kernel f32_scale: has no code");
}

/// CTAs of a cluster run at once: of an odd budget one multiprocessor would never have its pair.
#[test]
fn clusters_are_whole_within_a_budget() {
    let with = |sms: u32| {
        move |g: &mut Graph| {
            g.kernels[0].ptx = Some(PtxCode {
                object: ObjectId(0),
                threads: 128,
                dynamic_shared_bytes: 0,
                cluster: Some(2),
                begins_early: false,
                hopper14: false,
                maps: vec![],
            });
            launch(g).sms = Some(sms);
        }
    };
    let said = "may use 131 multiprocessors, in clusters of 2 CTAs";
    check(with(131), &format!("entry eval, step layers.mlp: {said}"));
    let mut graph = sample::graph();
    with(130)(&mut graph);
    assert_eq!(graph.verify(), Ok(()));
}

#[test]
fn expressions_are_finite() {
    check(
        |g| launch(g).grid = DimExpr::dim(DimId(0)) * i64::MAX,
        "entry eval, step layers.mlp: 9223372036854775807*B is out of range",
    );
    check(
        |g| launch(g).grid = DimExpr::dim(DimId(5)),
        "entry eval, step layers.mlp: d5 is out of range",
    );
    check(|g| entry(g).dims[1].max = -4, "entry eval: S is bounded by -4");
}

#[test]
fn a_temp_lies_in_the_arena() {
    check(|g| entry(g).arena_bytes -= 1, "entry eval, buffer h: 524288 bytes at 64 of the arena");
    check(
        |g| entry(g).buffers[4].role = Role::Temp { offset: 4 },
        "entry eval, buffer h: 524288 bytes at 4 of the arena",
    );
}

#[test]
fn a_constant_has_its_bytes() {
    check(
        |g| g.constants[0].truncate(15),
        "entry eval, buffer table: constant 0 does not hold 16 bytes",
    );
}

#[test]
fn an_alias_is_of_one_type() {
    check(
        |g| entry(g).buffers[3].dtype = DType::I32,
        "entry eval, buffer step.next: cannot be the new value of step",
    );
    check(
        |g| entry(g).buffers[3].alias = Some(BufferId(0)),
        "entry eval, buffer step.next: cannot be the new value of x",
    );
}

#[test]
fn a_weight_says_how_it_is_stored() {
    check(
        |g| entry(g).buffers[1].weight.as_mut().unwrap().template = "model.scale".into(),
        "entry eval, buffer mlp.scale: 1 stacked dims are stored as model.scale",
    );
    check(
        |g| entry(g).buffers[1].weight.as_mut().unwrap().starts = vec![0; 3],
        "entry eval, buffer mlp.scale: 3 of its dims [3, 64] are stacked",
    );
    check(
        |g| entry(g).buffers[1].dims[0] = DimExpr::dim(DimId(0)),
        "entry eval, buffer mlp.scale: is stored, but its shape is not constant",
    );
    check(
        |g| entry(g).buffers[1].weight = None,
        "entry eval, buffer mlp.scale: does not say how it is stored",
    );
}

#[test]
fn a_state_keeps_its_layout() {
    let (batch, seq) = (DimExpr::dim(DimId(0)), DimExpr::dim(DimId(1)));
    check(
        |g| entry(g).buffers[2].dims = vec![batch.clone(), seq.clone()],
        "entry eval, buffer step: is kept between runs, but its layout changes with the dims",
    );
    let mut graph = sample::graph();
    for state in [2, 3] {
        entry(&mut graph).buffers[state].dims = vec![1.into(), seq.clone(), 64.into()];
    }
    assert_eq!(graph.verify(), Ok(()));
}

#[test]
fn shared_buffers_agree() {
    check(
        |g| {
            let mut second = entry(g).clone();
            second.name = "train".into();
            second.buffers[1].dims[1] = 32.into();
            second.steps.clear();
            g.entries.push(second);
        },
        "entry train: mlp.scale is f32[3, 32] here and f32[3, 64] in entry eval",
    );
}

#[test]
fn a_loop_index_has_its_loop() {
    check(
        |g| launch(g).scalars = vec![Scalar::LoopIndex(1)],
        "entry eval, step layers.mlp: uses the index of loop 1 inside 1 loops",
    );
}

#[test]
fn arguments_stay_in_their_buffers() {
    check(
        |g| launch(g).args[1].strides[0].bytes = 400.into(),
        "entry eval, step layers.mlp: reaches bytes 0..800 of mlp.scale, which has 768",
    );
    check(
        |g| launch(g).args[0].byte_offset = (-2).into(),
        "entry eval, step layers.mlp: reaches bytes -2..-2 of x, which has 262144",
    );
    check(
        |g| {
            let Step::Copy(copy) = &mut entry(g).steps[1] else { unreachable!() };
            copy.bytes = copy.bytes.clone() + 1;
        },
        "entry eval, step y: reaches bytes 0..524289 of h, which has 524288",
    );
}

#[test]
fn what_is_begun_is_done_once_in_the_same_loop() {
    let half = |half, label: &str| {
        Step::Collective(Collective {
            kind: CollectiveKind::AllReduce,
            half: Some(half),
            group: Group { axis: "data".into(), size: 2, stride: 1 },
            from: Arg::whole(BufferId(0)),
            to: Arg::whole(BufferId(1)),
            segments: None,
            room: None,
            outer: 1.into(),
            block: 0.into(),
            dtype: DType::F32,
            label: label.into(),
            source: vec![],
            order: Order::default(),
        })
    };
    let wrong = |steps: Vec<Step>, expect: &str| check(|g| entry(g).steps.extend(steps), expect);
    let mut graph = sample::graph();
    let right = [half(Half::Start(0), "x"), half(Half::Done(0), "x")];
    entry(&mut graph).steps.extend(right);
    assert_eq!(graph.verify(), Ok(()));
    wrong(vec![half(Half::Start(0), "x")], "entry eval, step x: begins 0, which is never done");
    let other = "entry eval, step y: ends 0, which these steps do not begin";
    wrong(vec![half(Half::Done(0), "y")], other);
    wrong(vec![half(Half::Start(0), "x"), half(Half::Done(0), "y")], other);
    let again = "entry eval, step y: begins 0, which is not done yet";
    wrong(vec![half(Half::Start(0), "x"), half(Half::Start(0), "y")], again);
}

/// A graph from a file may say that steps run at once which touch the same bytes.
#[test]
fn steps_of_different_streams_are_ordered() {
    let ordered = |g: &mut Graph| {
        let entry = entry(g);
        *entry.steps[1].order_mut() = Order { stream: 1, waits: vec![0], signal: None };
        entry.steps[0].order_mut().signal = Some(0);
    };
    let mut graph = sample::graph();
    ordered(&mut graph);
    assert_eq!(graph.verify(), Ok(()));
    let wrong = |change: fn(&mut Entry), expect: &str| {
        let both = |g: &mut Graph| {
            ordered(g);
            change(entry(g));
        };
        check(both, expect);
    };
    wrong(
        |e| e.steps[1].order_mut().waits.clear(),
        "entry eval, step y: touches on stream 1 what layers does on 0, and does not wait for it",
    );
    wrong(
        |e| e.steps[0].order_mut().signal = None,
        "entry eval, step y: waits for event 0, which no step before it records",
    );
    wrong(|e| e.steps[1].order_mut().signal = Some(0), "entry eval, step y: records event 0 again");
    wrong(|e| e.steps[0].order_mut().stream = 1, "entry eval, step layers: is on stream 1, of 1");
    wrong(|e| e.steps[1].order_mut().stream = 16, "entry eval, step y: is on stream 16, of 16");
}
