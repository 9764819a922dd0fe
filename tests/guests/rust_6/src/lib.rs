//! A guest for spin-sdk 6: GET is the example of Spin's documentation, POST makes one call.

mod call;
mod example;

use spin_sdk::http::{body::IncomingBodyExt, IntoResponse, Method, Request};
use spin_sdk::{http_service, llm};

#[http_service]
async fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    if request.method() == Method::GET {
        return Ok(example::handle_code(request).await?.into_response());
    }
    let body = request.into_body().bytes().await?;
    Ok(call::answer(&body)?.into_response())
}

fn inferencing_model(name: &str) -> llm::InferencingModel<'_> {
    match name {
        "llama2-chat" => llm::InferencingModel::Llama2Chat,
        "codellama-instruct" => llm::InferencingModel::Codellarunstruct,
        other => llm::InferencingModel::Other(other),
    }
}
