//! The search against a simulation of every layout.

use std::collections::BTreeSet;

use weft_plan::cluster::Cluster;
use weft_plan::kernel::{Kernel, Work};
use weft_plan::search::{Space, search};
use weft_plan::step::plan_below;
use weft_plan::unit::{Passes, Unit, Weights};
use weft_plan::{Layout, plan};
use weft_schedule::{Name, Size, generate};

fn layer(seconds: f64, weights: f64) -> Unit {
    let rows = |bytes: f64| Passes {
        attention: vec![Kernel { name: "rows".into(), work: Work::Rows { bytes, encode: None } }],
        ..Passes::default()
    };
    Unit {
        name: "layer".into(),
        forward: rows(seconds),
        input: rows(seconds),
        weight: rows(seconds),
        weights: Weights { dense: weights, dense_bytes: weights, ..Weights::default() },
        saved_bytes: 3.0,
        saved_row_bytes: 0.0,
    }
}

#[test]
fn the_search_finds_what_a_look_at_all_layouts_finds() {
    let mut c = Cluster::parse(include_str!("../../clusters/h800.json")).expect("a cluster");
    (c.memory_bytes_per_s, c.rows, c.launch_us) = (1.0, 1.0, 0.0);
    (c.network_bytes_per_s, c.node_bytes_per_s) = (100.0, 1000.0);
    let units: Vec<Unit> = (0..6).map(|i| layer(1.0 + f64::from(i % 3), 2.0)).collect();
    let table = |name: Name, n_ranks, n_micro_batches, stages_per_rank| {
        generate(name, Size { n_ranks, n_micro_batches, stages_per_rank })
    };
    let like = Layout {
        data: 4,
        tensor: 1,
        experts: 1,
        node: 2,
        nodes_per_token: None,
        zero: false,
        communication_sms: 0,
        table: table(Name::OneFOneB, 1, 4, 1).expect("a table"),
        tokens: 10,
        message_bytes: 30.0,
        within_memory: true,
        stage_layers: None,
        moment_bytes: 4.0,
    };
    let space = Space {
        n_gpus: 4,
        micro_batches: 16,
        heads: BTreeSet::from([4]),
        experts: BTreeSet::new(),
    };
    let mut n_fit = vec![];
    for memory in [100.0, 150.0, 230.0, 1e6] {
        c.memory_bytes = memory;
        let mut best = f64::INFINITY;
        for tensor in [1, 2] {
            for pipeline in [1u64, 2, 4].into_iter().filter(|p| p * tensor <= 4) {
                let data = 4 / tensor / pipeline;
                for name in Name::ALL.into_iter().filter(|n| *n != Name::GPipe) {
                    for stages in [1, 2, 4] {
                        let n = 16 / data as usize;
                        let Ok(table) = table(name, pipeline as usize, n, stages) else { continue };
                        let n_stages = table.n_stages();
                        if n_stages > 6 || (pipeline == 1 && name != Name::OneFOneB) {
                            continue;
                        }
                        let l = Layout { data, tensor, table, ..like.clone() };
                        let p = plan(&units, &c, &l, &[]).expect("a plan");
                        // What is ruled out before it is run takes longer.
                        let below = |s| plan_below(&units, &c, &l, &[], s).expect("a plan");
                        let same = below(p.step_seconds * (1.0 + 1e-9)).map(|p| p.step_seconds);
                        assert_eq!(same, p.fits.then_some(p.step_seconds), "{name}");
                        assert!(below(p.step_seconds / 4.0).is_none(), "{name}");
                        if p.fits {
                            best = best.min(p.step_seconds);
                        }
                    }
                }
            }
        }
        let (found, n_run, n_all) =
            search(&[units.clone()], &c, &like, &space, &[]).expect("a search");
        assert!(n_run <= n_all);
        let first = found.first().map_or(f64::INFINITY, |f| f.plan.step_seconds);
        assert_eq!(first, best, "{memory}");
        assert!(found.iter().all(|f| f.plan.memory.iter().all(|m| m.total() <= memory)));
        n_fit.push(found.len());
    }
    assert!(n_fit[0] < n_fit[3], "{n_fit:?}");
}
