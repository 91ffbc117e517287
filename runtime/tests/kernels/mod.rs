//! Graphs over the pre-built objects beside this file. Each object's C source names the command
//! that makes it.

#![allow(dead_code, reason = "each test file uses its part")]

use weft_graph::*;

pub const KERNELS: &[u8] = include_bytes!("kernels.o");
pub const UNDEFINED: &[u8] = include_bytes!("undefined.o");
pub const GOT: &[u8] = include_bytes!("got.o");
pub const ABSOLUTE: &[u8] = include_bytes!("absolute.o");
pub const WRITABLE: &[u8] = include_bytes!("writable.o");

pub const SCALE: KernelId = KernelId(0);
pub const REVERSE: KernelId = KernelId(1);
pub const ADD: KernelId = KernelId(2);
pub const EMPTY: KernelId = KernelId(3);
pub const TABLE: KernelId = KernelId(4);

pub const BATCH: DimId = DimId(0);
pub const COLUMNS: i64 = 16;
pub const LAYERS: i64 = 3;

/// A graph with the kernels of `kernels.o` and these entries.
pub fn graph(entries: Vec<Entry>) -> Graph {
    let names = ["f32_scale", "f32_reverse", "i64_add", "empty", "f32_table"];
    let kernel = |name: &&str| Kernel {
        name: (*name).into(),
        ptx: None,
        scratch_bytes: 4096,
        variants: vec![KernelVariant { cpu: CpuVariant::Avx2, object: ObjectId(0) }],
    };
    let graph = Graph {
        compiler: "weft test".into(),
        source: "test.model".into(),
        command: "weft compile test.model".into(),
        entries,
        kernels: names.iter().map(kernel).collect(),
        objects: vec![KERNELS.to_vec()],
        constants: Vec::new(),
    };
    graph.verify().unwrap();
    graph
}

pub fn rows() -> Vec<DimExpr> {
    vec![DimExpr::dim(BATCH), COLUMNS.into()]
}

/// `y = reverse(scale by each layer's weights, layers in order or reversed (x))`; counts its runs.
pub fn layers(name: &str, reverse: bool) -> Entry {
    let row_bytes = DimExpr::constant(COLUMNS * 4);
    let mut weight =
        Buffer::new("w", DType::F32, vec![LAYERS.into(), COLUMNS.into()], Role::Weight);
    weight.weight = Some(WeightInfo {
        template: "layers.{i}.w".into(),
        starts: vec![0],
        duplicates: Vec::new(),
        init: Init::Drawn,
        trained: true,
        coded: None,
        cuts: vec![],
        places: vec![],
        table: false,
    });
    let mut next = Buffer::new("runs.next", DType::I64, vec![], Role::Output);
    next.alias = Some(BufferId(5));
    let h_bytes = 64 * COLUMNS * 4;
    let scale = Launch {
        scalars: vec![Scalar::Dim(COLUMNS.into()), Scalar::f32(2.0)],
        flops: DimExpr::dim(BATCH) * (2 * COLUMNS),
        ..Launch::new(
            SCALE,
            vec![
                Arg::whole(BufferId(2)),
                Arg::sliced(BufferId(1), 0, row_bytes.clone()),
                Arg::whole(BufferId(2)),
            ],
            DimExpr::dim(BATCH),
            "layers.scale",
        )
    };
    let turn = Launch {
        scalars: vec![Scalar::Dim(COLUMNS.into())],
        ..Launch::new(
            REVERSE,
            vec![Arg::whole(BufferId(2)), Arg::whole(BufferId(3))],
            DimExpr::dim(BATCH),
            "turn",
        )
    };
    let count = Launch {
        scalars: vec![Scalar::Dim(1.into())],
        ..Launch::new(ADD, vec![Arg::whole(BufferId(4))], 1.into(), "count")
    };
    Entry {
        name: name.into(),
        dims: vec![DimDecl { name: "B".into(), max: 64 }],
        buffers: vec![
            Buffer::new("x", DType::F32, rows(), Role::Input),
            weight,
            Buffer::new("h", DType::F32, rows(), Role::Temp { offset: 128 }),
            Buffer::new("y", DType::F32, rows(), Role::Output),
            next,
            Buffer::new("runs", DType::I64, vec![], Role::State),
        ],
        steps: vec![
            Step::Copy(Copy {
                order: Order::default(),
                from: Arg::whole(BufferId(0)),
                to: Arg::whole(BufferId(2)),
                bytes: DimExpr::dim(BATCH) * row_bytes,
                label: "h".into(),
            }),
            Step::Loop(Loop {
                order: Order::default(),
                count: LAYERS.into(),
                reverse,
                left: None,
                body: vec![Step::Launch(scale)],
                label: "layers".into(),
            }),
            Step::Launch(turn),
            Step::Launch(count),
        ],
        arena_bytes: 128 + h_bytes as u64,
        meta: serde_json::Map::new(),
    }
}
