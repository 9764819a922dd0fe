//! A guest for spin-sdk 5: GET is the example of Spin's documentation, POST makes one call.

mod call;
mod example;

use spin_sdk::http::{IntoResponse, Method, Request, Response};
use spin_sdk::{http_component, llm};

#[http_component]
fn handle(request: Request) -> anyhow::Result<Response> {
    if *request.method() == Method::Get {
        return Ok(example::handle_code(request)?.into_response());
    }
    Ok(Response::new(200, call::answer(request.body())?))
}

fn inferencing_model(name: &str) -> llm::InferencingModel<'_> {
    match name {
        "llama2-chat" => llm::InferencingModel::Llama2Chat,
        "codellama-instruct" => llm::InferencingModel::CodellamaInstruct,
        other => llm::InferencingModel::Other(other),
    }
}
