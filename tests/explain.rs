//! `weft explain` and `weft check` against published figures of DeepSeek's models.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

fn weft(args: &[&str]) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(args)
        .current_dir(root)
        .output()
        .expect("weft runs");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "weft {}: {errors}", args.join(" "));
    String::from_utf8(output.stdout).expect("text")
}

fn json(args: &[&str]) -> Value {
    serde_json::from_str(&weft(args)).expect("JSON")
}

#[test]
fn deepseek_v3_has_its_published_figures() {
    let facts = json(&["explain", "models/deepseek_v3.model", "--json"]);
    let inference = &facts["parameters"]["inference"];
    assert_eq!(inference["total"], 671_026_419_200u64);
    // Without embedding: 36,624,596,992 in matmuls, and the norms and the router's bias.
    let active = inference["active"].as_u64().expect("a count");
    let in_matmuls = 36_624_596_992 + 129_280 * 7_168;
    let norms = 61 * (2 * 7_168 + 1_536 + 512) + 7_168;
    assert_eq!(active, in_matmuls + norms + 58 * 256);
    // One more layer with its experts, its projection of two states, three norms.
    assert_eq!(facts["parameters"]["training_only"]["total"], 11_610_068_224u64);
    assert_eq!(facts["cache_bytes_per_token"]["bf16"], 70_272);
    assert_eq!(facts["cache_bytes_per_token"]["f32"], 140_544);
    let flops = &facts["flops_per_token"];
    let attention = 61 * 2 * 128 * (192 + 128) * 4096 / 2;
    assert_eq!(flops["forward"], 2 * 36_624_596_992u64 + attention);
    assert_eq!(flops["training"], 6 * 36_624_596_992u64 + 3 * attention);
}

#[test]
fn the_table_says_the_same() {
    let table = weft(&["explain", "models/deepseek_v3.model"]);
    for text in [
        "671,026,419,200  37.55 B active",
        "training    250.4 GFLOP at sequence 4096",
        "70,272 in bf16",
        "layers.0 (3x)",
        "layers.1 (58x)",
        "experts (256x)",
        "training only",
    ] {
        assert!(table.contains(text), "no `{text}` in\n{table}");
    }
}

#[test]
fn deepseek_v2_lite_has_its_published_figures() {
    let facts = json(&["explain", "models/deepseek_v2_lite.model", "--json"]);
    let inference = &facts["parameters"]["inference"];
    assert_eq!(inference["total"], 15_706_484_224u64);
    let active = inference["active"].as_u64().expect("a count") as f64;
    assert_eq!((active / 1e6).round(), 2_661.0);
    assert_eq!(facts["parameters"]["training_only"]["total"], 0);
}

/// The names of a checkpoint that is trained by others are those the model publishes.
#[test]
fn weights_are_listed_as_published() {
    let dir = "tests/golden/v3-mtp";
    let config: Value = serde_json::from_str(
        &std::fs::read_to_string(
            Path::new(env!("CARGO_MANIFEST_DIR")).join(dir).join("config.json"),
        )
        .expect("the reference case"),
    )
    .expect("JSON");
    let set = |name: &str, key: &str| format!("{name}={}", config[key]);
    let sets = [
        set("vocab", "vocab_size"),
        set("hidden", "hidden_size"),
        set("depth", "num_hidden_layers"),
        set("dense", "first_k_dense_replace"),
        set("heads", "num_attention_heads"),
        set("q_rank", "q_lora_rank").replace("null", "none"),
        set("kv_rank", "kv_lora_rank"),
        set("nope", "qk_nope_head_dim"),
        set("rope", "qk_rope_head_dim"),
        set("value", "v_head_dim"),
        set("inner", "intermediate_size"),
        set("expert_inner", "moe_intermediate_size"),
        set("n_experts", "n_routed_experts"),
        set("active", "num_experts_per_tok"),
        set("shared", "n_shared_experts"),
        set("groups", "n_group"),
        set("kept_groups", "topk_group"),
        set("mtp_depth", "num_nextn_predict_layers"),
    ];
    let mut args = vec!["explain", "models/deepseek_v3.model", "--weights", "--json"];
    sets.iter().for_each(|s| args.extend(["--set", s]));
    let listed = json(&args);
    let mut found: Vec<(String, Vec<u64>)> = listed
        .as_array()
        .expect("an array")
        .iter()
        .map(|t| {
            let dims = t["shape"].as_array().expect("dims").iter().filter_map(Value::as_u64);
            (t["name"].as_str().expect("a name").to_string(), dims.collect())
        })
        .collect();
    found.sort();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(dir).join("model.safetensors");
    let file = weft_runtime::checkpoint::tensor_file::TensorFile::open(&path).expect("a file");
    let mut stored: Vec<(String, Vec<u64>)> = file
        .tensors()
        .map(|t| (t.name.clone(), t.shape.iter().map(|d| *d as u64).collect()))
        .collect();
    stored.sort();
    assert_eq!(found, stored);
}

#[test]
fn the_weights_of_671_billion_parameters_in_fp8_are_the_published_ones() {
    let args = ["explain", "models/deepseek_v3.model", "--precision", "deepseek_fp8"];
    let listed = json(&[&args[..], &["--weights", "--json"]].concat());
    let listed = listed.as_array().expect("an array");
    let shape = |t: &Value| -> Vec<u64> {
        t["shape"].as_array().expect("dims").iter().filter_map(Value::as_u64).collect()
    };
    let size_bytes = |t: &Value| {
        let element = match t["dtype"].as_str() {
            Some("F8_E4M3") => 1,
            Some("BF16") => 2,
            Some("F32") => 4,
            other => panic!("no published tensor is {other:?}"),
        };
        shape(t).iter().product::<u64>() * element
    };
    assert_eq!(listed.len(), 91_991);
    assert_eq!(listed.iter().map(size_bytes).sum::<u64>(), 688_574_839_360);
    let found = |name: &str| {
        let tensor = listed.iter().find(|t| t["name"] == name).expect(name);
        (tensor["dtype"].as_str().expect("a type"), shape(tensor))
    };
    let attention = "model.layers.7.self_attn.kv_a_proj_with_mqa.weight";
    assert_eq!(found(attention), ("F8_E4M3", vec![576, 7168]));
    assert_eq!(found(&format!("{attention}_scale_inv")), ("F32", vec![5, 56]));
    assert_eq!(found("model.layers.7.mlp.gate.weight"), ("BF16", vec![256, 7168]));
    let bias = "model.layers.7.mlp.gate.e_score_correction_bias";
    assert_eq!(found(bias), ("F32", vec![256]));
    assert_eq!(found("model.layers.61.eh_proj.weight"), ("BF16", vec![7168, 14336]));
    assert_eq!(found("lm_head.weight"), ("BF16", vec![129_280, 7168]));
}

#[test]
fn a_precision_says_what_every_product_is_computed_in() {
    let args = ["explain", "models/deepseek_v3.model", "--precision", "deepseek_fp8"];
    let table = json(&[&args[..], &["--json"]].concat());
    let products = table["products"].as_array().expect("products");
    let site = |path: &str| products.iter().find(|p| p["site"] == path).expect(path);
    let role = |path: &str, i: usize| &site(path)["products"][i];

    // o_proj: 4096 tokens of 128 heads of 128.
    let o_proj = "layers.1.self_attn.o_proj";
    let forward = role(o_proj, 0);
    assert_eq!([&forward["m"], &forward["n"], &forward["k"]], [4096, 7168, 16384]);
    let x = &forward["operands"][0];
    assert_eq!((&x["dtype"], &x["scale"]), (&Value::from("e4m3"), &Value::from("ue8m0")));
    assert_eq!(x["scale_shape"], Value::from(vec![4096, 128]));
    assert_eq!(forward["operands"][1]["scale_shape"], Value::from(vec![56, 128]));
    assert_eq!(forward["promote"], 128);
    let saved = &site(o_proj)["kept"][0];
    assert_eq!((&saved["what"], &saved["dtype"]), (&"saved_input".into(), &"e5m6".into()));
    // 12 bits an element and a byte for 128 of them, in 58 layers.
    assert_eq!(saved["bytes"], 58u64 * (4096 * 16384 * 3 / 2 + 4096 * 128));
    assert_eq!(saved["bf16_bytes"], 58u64 * 4096 * 16384 * 2);

    // Outputs of norms and of SwiGLU are computed again from what is stored anyway; a shared input
    // of two products is stored once.
    let kept = |path: &str, i: usize| {
        let kept = &site(path)["kept"][i];
        (kept["what"].clone(), kept["stored"].clone(), kept["bytes"].clone())
    };
    let none = Value::from(0);
    for path in ["layers.1.self_attn.q_a_proj", "layers.1.mlp.experts.down_proj"] {
        assert_eq!(kept(path, 0), ("saved_input".into(), "computed again".into(), none.clone()));
    }
    let (what, stored, bytes) = kept("layers.1.mlp.experts.up_proj", 1);
    assert_eq!((what, stored), ("saved_output".into(), "here".into()));
    assert_eq!(bytes, 58u64 * (8 * 4096 * 2048 + 8 * 4096 * 16 * 4));

    let gradient = role("layers.1.mlp.experts.down_proj", 1);
    assert_eq!(gradient["operands"][0]["scale"], "ue8m0");
    assert_eq!(gradient["operands"][0]["shape"], Value::from(vec![8 * 4096, 7168]));
    let weight = role("layers.0.mlp.up_proj", 2);
    assert_eq!(weight["operands"][1]["group"], Value::from(vec![128, 1]));
    for path in ["layers.1.mlp.gate", "lm_head", "mtp.eh_proj"] {
        assert!(role(path, 0)["operands"][0]["group"].is_null(), "{path} is quantized");
    }
    assert_eq!(role("layers.1.mlp.gate", 0)["operands"][0]["dtype"], "f32");
    assert_eq!(role("lm_head", 0)["operands"][0]["dtype"], "bf16");
    let why = &role("lm_head", 0)["why"][0];
    assert_eq!(why, "compute = bf16");
}

#[test]
fn every_shipped_model_checks() {
    for model in ["deepseek_v3", "deepseek_v2_lite", "llama", "nano", "small"] {
        weft(&["check", &format!("models/{model}.model")]);
    }
}

#[test]
fn a_sequence_has_a_token() {
    let output = Command::new(env!("CARGO_BIN_EXE_weft"))
        .args(["explain", "models/llama.model", "--sequence", "0"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("weft runs");
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("at least one token"));
}

#[test]
fn ranks_along_tensor_divide_what_the_published_code_divides() {
    let table = json(&["explain", "models/deepseek_v3.model", "--tensor", "8", "--json"]);
    let weights = table["weights"].as_array().expect("all weights");
    let cut = |name: &str| {
        let of = |w: &&Value| w["weight"].as_str().is_some_and(|path| path.ends_with(name));
        let mut dims: Vec<&Value> = weights.iter().filter(of).map(|w| &w["dim"]).collect();
        dims.dedup();
        let [dim] = dims[..] else { panic!("{name}: {dims:?}") };
        dim.as_u64()
    };
    let rows = ["embed_tokens", "q_b_proj", "kv_b_proj", "gate_proj", "up_proj", "lm_head"];
    for name in rows {
        assert_eq!(cut(&format!("{name}.weight")), Some(0), "{name}");
    }
    for name in ["o_proj", "down_proj"] {
        assert_eq!(cut(&format!("{name}.weight")), Some(1), "{name}");
    }
    for name in ["q_a_proj", "kv_a_proj_with_mqa", "norm", "mlp.gate", "eh_proj"] {
        assert_eq!(cut(&format!("{name}.weight")), None, "{name}");
    }
    let router = weights.iter().find(|w| w["weight"] == "layers.1.mlp.gate.weight");
    let router = router.expect("the first router");
    assert_eq!(router["why"], "`grouped_topk` needs it whole");
    // 32 channels of an expert for each rank are no group of 128.
    let fp8 = ["--precision", "deepseek_fp8", "--tensor", "64", "--json"];
    let table = json(&[&["explain", "models/deepseek_v3.model"], &fp8[..]].concat());
    let all = table["weights"].as_array().expect("all weights");
    let why = |name: &str| {
        let found = all.iter().find(|w| w["weight"] == name).unwrap_or_else(|| panic!("no {name}"));
        (found["dim"].as_u64(), found["why"].as_str().unwrap_or("").to_string())
    };
    assert_eq!(why("layers.0.self_attn.q_b_proj.weight").0, Some(0));
    let (dim, reason) = why("layers.1.mlp.experts.up_proj.weight");
    assert_eq!(dim, None);
    assert!(reason.contains("64 ranks would cut a group of 128 of the 2048"), "{reason}");
}
