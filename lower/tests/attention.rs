//! Attention in whole functions, on every machine's kernels, against the interpreter: shared heads,
//! several parts, masks, sizes that fill no block.

mod machines;

use machines::{Draw, check, module};
use weft_backend_cuda::Cuda;
use weft_backend_cuda::gemm::select::Budget;
use weft_graph::Step;

/// Segment numbers are drawn from three; queries and keys are of one array where segments count.
const DRAW: Draw = Draw { low: -1.0, high: 1.0, ints: 3.0 };
const TOLERANCE: f64 = 4e-6;

/// What one case asks for.
#[derive(Clone, Copy)]
struct Case {
    dtype: &'static str,
    /// Queries and keys.
    rows: (&'static str, &'static str),
    heads: u64,
    /// Heads of k and widths of the parts; heads and width of v.
    parts: &'static [(u64, u64)],
    v: (u64, u64),
    attrs: &'static str,
}

impl Case {
    fn text(&self, gradients: bool) -> String {
        let Case { dtype, rows: (s, t), heads, parts, v, attrs } = *self;
        let mut params = vec![];
        let mut names = vec![];
        let mut shapes = vec![];
        let mut add = |name: String, ty: String| {
            params.push(format!("%{name}: {ty}"));
            names.push(format!("%{name}"));
            shapes.push(ty);
        };
        for (i, (_, width)) in parts.iter().enumerate() {
            add(format!("q{i}"), format!("{dtype}[B, {s}, {heads}, {width}]"));
        }
        for (i, (shared, width)) in parts.iter().enumerate() {
            add(format!("k{i}"), format!("{dtype}[B, {t}, {shared}, {width}]"));
        }
        add("v".into(), format!("{dtype}[B, {t}, {}, {}]", v.0, v.1));
        let (o, lse) =
            (format!("{dtype}[B, {s}, {heads}, {}]", v.1), format!("f32[B, {heads}, {s}]"));
        let operands = names.join(", ");
        let differentiated = shapes.clone();
        let mut masks = vec![];
        if attrs.contains("offset") {
            params.push("%start: i32[B]".into());
            masks.push("%start");
        }
        if attrs.contains("segments") {
            params.push(format!("%qs: i32[B, {s}]"));
            params.push(format!("%ks: i32[B, {t}]"));
            masks.extend(["%qs", "%ks"]);
        }
        let masks: String = masks.iter().map(|m| format!(", {m}")).collect();
        let attrs = format!("{{parts = {}, scale = 0.3{attrs}}}", parts.len());
        let mut results = vec![("o".to_string(), o.clone()), ("lse".into(), lse.clone())];
        let mut body = format!("%o, %lse = attention {operands}{masks} {attrs} : {o}, {lse}\n");
        let mut returned = vec!["%o".to_string(), "%lse".into()];
        if gradients {
            params.push(format!("%do: {o}"));
            let made: Vec<String> = (0..differentiated.len()).map(|i| format!("%d{i}")).collect();
            body += &format!(
                "{} = attention_grad {operands}, %o, %lse, %do{masks} {attrs} : {}\n",
                made.join(", "),
                differentiated.join(", ")
            );
            results
                .extend(differentiated.into_iter().enumerate().map(|(i, t)| (format!("d{i}"), t)));
            returned.extend(made);
        }
        let results: Vec<String> = results.iter().map(|(n, t)| format!("{n}: {t}")).collect();
        format!(
            "dims {{ B <= 2, S <= 70, T <= 80 }}\nfunc @f({}) -> ({}) {{\n{body}return {}\n}}",
            params.join(", "),
            results.join(", "),
            returned.join(", ")
        )
    }
}

const CASES: [Case; 6] = [
    // One part, a head of k for each of q.
    Case { dtype: "f32", rows: ("S", "T"), heads: 2, parts: &[(2, 16)], v: (2, 16), attrs: "" },
    // Latent attention: a part with heads of its own, and one that all share.
    Case {
        dtype: "f32",
        rows: ("S", "S"),
        heads: 4,
        parts: &[(4, 12), (1, 5)],
        v: (4, 20),
        attrs: ", causal = true",
    },
    Case {
        dtype: "f32",
        rows: ("S", "S"),
        heads: 4,
        parts: &[(2, 33)],
        v: (2, 40),
        attrs: ", causal = true, segments = true",
    },
    // A decoded token over a cache.
    Case {
        dtype: "f32",
        rows: ("1", "T"),
        heads: 4,
        parts: &[(1, 64), (1, 8)],
        v: (1, 64),
        attrs: ", causal = true, offset = true",
    },
    Case {
        dtype: "f32",
        rows: ("S", "T"),
        heads: 1,
        parts: &[(1, 7)],
        v: (1, 3),
        attrs: ", segments = true",
    },
    Case {
        dtype: "f32",
        rows: ("S", "T"),
        heads: 2,
        parts: &[(1, 8)],
        v: (2, 8),
        attrs: ", causal = true, offset = true",
    },
];

#[test]
fn forward() {
    for case in CASES {
        for sizes in [("S", 33, 40), ("S", 1, 3), ("S", 32, 32)] {
            let m = module(&case.text(false));
            let (s, t) = (sizes.1, sizes.2);
            let given: Vec<(&str, u64)> = [("B", 2), ("S", s), ("T", t)]
                .into_iter()
                .filter(|(n, _)| m.find_sym(n).is_some())
                .collect();
            check(&m, "f", &given, DRAW, TOLERANCE);
        }
    }
}

#[test]
fn derivatives() {
    for case in CASES {
        let m = module(&case.text(true));
        let given: Vec<(&str, u64)> = [("B", 2), ("S", 35), ("T", 37)]
            .into_iter()
            .filter(|(n, _)| m.find_sym(n).is_some())
            .collect();
        check(&m, "f", &given, DRAW, TOLERANCE);
    }
}

/// Widths that tensor cores take: heads of k and v that are shared, by some or by all.
const ON_TENSOR_CORES: [Case; 3] = [
    Case {
        dtype: "bf16",
        rows: ("S", "S"),
        heads: 4,
        parts: &[(4, 24), (1, 8)],
        v: (4, 40),
        attrs: ", causal = true, segments = true",
    },
    Case {
        dtype: "bf16",
        rows: ("S", "T"),
        heads: 4,
        parts: &[(2, 64)],
        v: (2, 64),
        attrs: ", causal = true, offset = true",
    },
    // Results that two units of heads share, and those that one has for itself.
    Case { dtype: "bf16", rows: ("S", "T"), heads: 4, parts: &[(2, 16)], v: (1, 16), attrs: "" },
];

/// In bf16 results are rounded, and on a CPU weights before they sum: to a unit in the last place.
#[test]
fn bf16() {
    for case in [CASES[1], CASES[3]].into_iter().chain(ON_TENSOR_CORES) {
        let m = module(&Case { dtype: "bf16", ..case }.text(true));
        let given: Vec<(&str, u64)> = [("B", 2), ("S", 33), ("T", 40)]
            .into_iter()
            .filter(|(n, _)| m.find_sym(n).is_some())
            .collect();
        check(&m, "f", &given, DRAW, 1.0 / 128.0);
    }
}

#[test]
fn derivatives_of_bf16_run_on_tensor_cores() {
    for case in ON_TENSOR_CORES {
        let m = module(&case.text(true));
        let (_, _, graph) = machines::ptx(&m, "f");
        let names: Vec<&str> = graph.kernels.iter().map(|k| k.name.as_str()).collect();
        let has = |what: &str| names.iter().any(|n| n.starts_with("sm90a_") && n.contains(what));
        assert!(has("_dq") && has("_dkv"), "{names:?}");
        let shared = case.parts.iter().any(|(heads, _)| *heads != case.parts[0].0);
        let shared = shared || case.v.0 != case.parts[0].0;
        let sums = names.iter().any(|n| n.contains("sum_heads"));
        assert_eq!(sums, shared, "{names:?}");
    }
}

/// Heads that share their keys, the first of which are the values: what decoding latent attention
/// is. Requests see between one key and all of them, in pieces.
#[test]
fn shared_latents_are_cut_in_pieces() {
    for (s, causal) in [("1", true), ("S", true), ("1", false)] {
        let (start, attrs) = match causal {
            true => (", %start", ", causal = true, offset = true"),
            false => ("", ""),
        };
        let text = format!(
            "dims {{ B <= 3, S <= 4, T <= 700 }}
func @f(%q0: bf16[B, {s}, 4, 64], %q1: bf16[B, {s}, 4, 8], %k0: bf16[B, T, 1, 64],
        %k1: bf16[B, T, 1, 8], %start: i32[B]) -> (o: bf16[B, {s}, 4, 64], lse: f32[B, 4, {s}]) {{
  %o, %lse = attention %q0, %q1, %k0, %k1, %k0{start} {{parts = 2, scale = 0.3{attrs}}}
    : bf16[B, {s}, 4, 64], f32[B, 4, {s}]
  return %o, %lse
}}"
        );
        let m = module(&text);
        let given: Vec<(&str, u64)> = [("B", 3), ("S", 2), ("T", 600)]
            .into_iter()
            .filter(|(n, _)| m.find_sym(n).is_some())
            .collect();
        let draw = Draw { ints: 600.0, ..DRAW };
        check(&m, "f", &given, draw, 1.0 / 128.0);
        let (_, _, graph) = machines::ptx(&m, "f");
        let names: Vec<&str> = graph.kernels.iter().map(|k| k.name.as_str()).collect();
        for kernel in ["sm90a_bf16_latent_attention_64_8", "sm90_simt_combine_4x64_256"] {
            assert!(names.iter().any(|n| n.starts_with(kernel)), "{kernel}: {names:?}");
        }
    }
}

/// A kernel that stays on its multiprocessors takes no more of them than a step is given.
#[test]
fn a_budget_of_multiprocessors_bounds_every_persistent_grid() {
    let m = module(&ON_TENSOR_CORES[0].text(true));
    for sms in [24, 108] {
        let machine = Cuda { budget: Budget { sms }, ..Cuda::WHOLE };
        let graph = machines::ptx_graph_of(&m, &["f"], machine);
        let launches = graph.entries[0].steps.iter().filter_map(|step| match step {
            Step::Launch(launch) => Some(launch),
            _ => None,
        });
        let persistent = launches.filter(|l| graph.kernel(l.kernel).name.starts_with("sm90a_"));
        let grids: Vec<_> = persistent.map(|l| l.sms).collect();
        assert_eq!(grids, [Some(sms); 3]);
    }
}
