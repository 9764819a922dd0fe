//! The Serverless AI example of Spin's documentation, for spin-sdk 5.

use spin_sdk::{
    http::{IntoResponse, Request, Response},
    llm,
};

pub fn handle_code(_request: Request) -> anyhow::Result<impl IntoResponse> {
    let result = llm::infer_with_options(
        llm::InferencingModel::CodellamaInstruct,
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
    Ok(Response::builder()
        .status(200)
        .header("content-type", "text/plain")
        .body(result.text)
        .build())
}
