use mood::{answer, MAX_TOKENS, MODEL, TEMPERATURE};
use serde_json::{json, Value};

const HAPPY: &str = "I love this song.";

/// As Spin asks a server for a model.
fn infer(prompt: &str) -> Result<String, ureq::Error> {
    let url = std::env::var("REFLLM_URL").unwrap_or("http://127.0.0.1:8177".to_owned());
    let options = json!({"maxTokens": MAX_TOKENS, "temperature": TEMPERATURE});
    let answer: Value = ureq::post(format!("{url}/infer"))
        .send_json(json!({"model": MODEL, "prompt": prompt, "options": options}))
        .expect("a server: refllm serve --stand-ins")
        .body_mut()
        .read_json()?;
    Ok(answer["text"].as_str().expect("a text").to_owned())
}

#[test]
fn a_happy_text_is_positive() {
    assert_eq!(answer(HAPPY, infer), (200, "positive".to_owned()));
}

#[test]
fn a_model_that_fails_is_no_reason_to_fail() {
    let failing = |_: &str| Err("out of memory");
    assert_eq!(answer(HAPPY, failing), (503, "try again later".to_owned()));
}
