//! The text form of an entry.

mod sample;

#[test]
fn an_entry_prints_one_line_per_buffer_and_step() {
    let expected = "\
entry eval(B <= 8, S <= 256), arena 524352 bytes
  input    x: bf16[B, S, 64]
  weight   mlp.scale: f32[3, 64] as model.layers.{i}.mlp.scale from [1]
  state    step: i64[]
  output   step.next: i64[] in place of step
  temp     h: f32[B, S, 64] at 64
  output   y: f32[B, S, 64]
  constant table: u8[16] bytes 0
  loop layers, 3 times, last to first {
    layers.mlp = f32_scale(x, mlp.scale[256*i0], h; S, 0.5f, i0), grid B*ceil(S / 4)  // toy.model:4
  }
  y = copy(y <- h), bytes 256*B*S
";
    assert_eq!(sample::graph().to_string(), expected);
}
