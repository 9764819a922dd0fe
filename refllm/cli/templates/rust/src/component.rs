//! The component: Spin's SDK calls `handle`, which asks Spin's models.

use spin_sdk::http::{IntoResponse, Request, Response};
use spin_sdk::http_component;
use spin_sdk::llm::{self, InferencingModel, InferencingParams};

#[http_component]
fn handle(request: Request) -> anyhow::Result<impl IntoResponse> {
    let text = String::from_utf8_lossy(request.body());
    let (status, body) = crate::answer(&text, |prompt| {
        let options = InferencingParams {
            max_tokens: crate::MAX_TOKENS,
            temperature: crate::TEMPERATURE,
            ..Default::default()
        };
        llm::infer_with_options(InferencingModel::Other(crate::MODEL), prompt, options)
            .map(|result| result.text)
    });
    Ok(Response::builder()
        .status(status)
        .header("content-type", "text/plain")
        .body(body)
        .build())
}
