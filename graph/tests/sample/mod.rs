//! A small graph with one of everything, shared by the tests.

use weft_graph::*;

/// Embedding-free toy: `y = sum over layers of scale(x, weight[layer])`, with a state updated in
/// place.
pub fn graph() -> Graph {
    let dims = vec![DimDecl { name: "B".into(), max: 8 }, DimDecl { name: "S".into(), max: 256 }];
    let (batch, seq) = (DimExpr::dim(DimId(0)), DimExpr::dim(DimId(1)));
    let width = DimExpr::constant(64);
    let rows = vec![batch.clone(), seq.clone(), width.clone()];
    let mut weight =
        Buffer::new("mlp.scale", DType::F32, vec![3.into(), width.clone()], Role::Weight);
    weight.weight = Some(WeightInfo {
        template: "model.layers.{i}.mlp.scale".into(),
        starts: vec![1],
        duplicates: Vec::new(),
        init: Init::Constant(1.0),
        trained: true,
        coded: None,
        cuts: vec![],
        places: vec![],
        table: false,
    });
    let mut next = Buffer::new("step.next", DType::I64, vec![], Role::Output);
    next.alias = Some(BufferId(2));
    let entry = Entry {
        name: "eval".into(),
        dims,
        buffers: vec![
            Buffer::new("x", DType::Bf16, rows.clone(), Role::Input),
            weight,
            Buffer::new("step", DType::I64, vec![], Role::State),
            next,
            Buffer::new("h", DType::F32, rows.clone(), Role::Temp { offset: 64 }),
            Buffer::new("y", DType::F32, rows, Role::Output),
            Buffer::new("table", DType::U8, vec![16.into()], Role::Constant(ConstantId(0))),
        ],
        steps: vec![
            Step::Loop(Loop {
                count: 3.into(),
                reverse: true,
                left: None,
                label: "layers".into(),
                order: Order::default(),
                body: vec![Step::Launch(Launch {
                    scalars: vec![Scalar::Dim(seq.clone()), Scalar::f32(0.5), Scalar::LoopIndex(0)],
                    source: vec!["toy.model:4".into()],
                    ..Launch::new(
                        KernelId(0),
                        vec![
                            Arg::whole(BufferId(0)),
                            Arg::sliced(BufferId(1), 0, 256.into()),
                            Arg::whole(BufferId(4)),
                        ],
                        batch.clone() * seq.clone().ceil_div(4),
                        "layers.mlp",
                    )
                })],
            }),
            Step::Copy(Copy {
                from: Arg::whole(BufferId(4)),
                to: Arg::whole(BufferId(5)),
                bytes: batch * seq * 256,
                label: "y".into(),
                order: Order::default(),
            }),
        ],
        arena_bytes: 64 + 8 * 256 * 64 * 4,
        meta: serde_json::Map::new(),
    };
    Graph {
        compiler: "weft 0.1.0".into(),
        source: "toy.model".into(),
        command: "weft compile toy.model --for eval -o toy.weft".into(),
        entries: vec![entry],
        kernels: vec![Kernel {
            name: "f32_scale".into(),
            ptx: None,
            scratch_bytes: 256,
            variants: vec![KernelVariant { cpu: CpuVariant::Avx2, object: ObjectId(0) }],
        }],
        objects: vec![vec![0x7f, b'E', b'L', b'F', 1, 2, 3]],
        constants: vec![(0..16).collect()],
    }
}
