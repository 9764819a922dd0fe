//! The Serverless AI example of Spin's documentation, for spin-sdk 6.
//!
//! The documentation has `InferencingModel::CodellamaInstruct`, which spin-sdk 6.0.0 and 7.0.0 spell
//! `Codellarunstruct`. `Other("codellama-instruct")` names the same model in every version.

use spin_sdk::{
    http::{IntoResponse, Request},
    llm,
};

pub async fn handle_code(_request: Request) -> anyhow::Result<impl IntoResponse> {
    let result = llm::infer_with_options(
        llm::InferencingModel::Codellarunstruct,
        "Write a function that adds two numbers.",
        llm::InferencingParams {
            max_tokens: 400,
            repeat_penalty: 1.1,
            repeat_penalty_last_n_token_count: 64,
            temperature: 0.8,
            top_k: 40,
            top_p: 0.9,
        },
    )?;
    Ok(result.text)
}
