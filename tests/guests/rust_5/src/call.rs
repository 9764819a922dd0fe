//! One call of the interface, as JSON asks for:
//!
//!     {"function": "infer", "arguments": ["tiny-chat", "Once"]}  ->  {"text": …, "usage": …}
//!     an error of the interface                                  ->  {"error": …, "message": …}

use anyhow::{anyhow, Context};
use serde_json::{json, Value};
use spin_sdk::llm;

use crate::inferencing_model;

pub fn answer(json: &[u8]) -> anyhow::Result<String> {
    let call: Value = serde_json::from_slice(json)?;
    let arguments = &call["arguments"];
    let model = text(&arguments[0])?;
    let answer = match text(&call["function"])? {
        "infer" => inferred(llm::infer(inferencing_model(model), text(&arguments[1])?)),
        "infer_with_options" => inferred(llm::infer_with_options(
            inferencing_model(model),
            text(&arguments[1])?,
            params(&arguments[2])?,
        )),
        "generate_embeddings" => embedded(llm::generate_embeddings(
            embedding_model(model),
            &texts(&arguments[1])?,
        )),
        other => return Err(anyhow!("{other} is no function of the interface")),
    };
    Ok(answer.unwrap_or_else(error).to_string())
}

fn embedding_model(name: &str) -> llm::EmbeddingModel<'_> {
    match name {
        "all-minilm-l6-v2" => llm::EmbeddingModel::AllMiniLmL6V2,
        other => llm::EmbeddingModel::Other(other),
    }
}

/// The options that are given, and the SDK's defaults for the others.
fn params(options: &Value) -> anyhow::Result<llm::InferencingParams> {
    let mut params = llm::InferencingParams::default();
    for (name, value) in options.as_object().context("options must be an object")? {
        match name.as_str() {
            "max_tokens" => params.max_tokens = whole(value)?,
            "repeat_penalty" => params.repeat_penalty = float(value)?,
            "repeat_penalty_last_n_token_count" => {
                params.repeat_penalty_last_n_token_count = whole(value)?
            }
            "temperature" => params.temperature = float(value)?,
            "top_k" => params.top_k = whole(value)?,
            "top_p" => params.top_p = float(value)?,
            other => return Err(anyhow!("{other} is no option of infer")),
        }
    }
    Ok(params)
}

fn text(value: &Value) -> anyhow::Result<&str> {
    value.as_str().context("a text is missing")
}

fn texts(value: &Value) -> anyhow::Result<Vec<String>> {
    let values = value.as_array().context("a list of texts is missing")?;
    values.iter().map(|value| Ok(text(value)?.to_owned())).collect()
}

fn whole(value: &Value) -> anyhow::Result<u32> {
    Ok(value.as_u64().context("a whole number is missing")?.try_into()?)
}

/// A number, or the name of one that JSON lacks: "NaN", "Infinity", "-Infinity".
fn float(value: &Value) -> anyhow::Result<f32> {
    match value.as_str() {
        Some(name) => Ok(name.parse()?),
        None => Ok(value.as_f64().context("a number is missing")? as f32),
    }
}

fn inferred(result: Result<llm::InferencingResult, llm::Error>) -> Result<Value, llm::Error> {
    let result = result?;
    let usage = json!({
        "prompt_token_count": result.usage.prompt_token_count,
        "generated_token_count": result.usage.generated_token_count,
    });
    Ok(json!({"text": result.text, "usage": usage}))
}

fn embedded(result: Result<llm::EmbeddingsResult, llm::Error>) -> Result<Value, llm::Error> {
    let result = result?;
    let usage = json!({"prompt_token_count": result.usage.prompt_token_count});
    Ok(json!({"embeddings": result.embeddings, "usage": usage}))
}

fn error(error: llm::Error) -> Value {
    match error {
        llm::Error::ModelNotSupported => json!({"error": "model-not-supported", "message": null}),
        llm::Error::RuntimeError(message) => json!({"error": "runtime-error", "message": message}),
        llm::Error::InvalidInput(message) => json!({"error": "invalid-input", "message": message}),
    }
}
