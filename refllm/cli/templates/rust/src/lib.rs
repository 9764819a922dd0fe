//! POST /mood answers whether a text is positive, negative or neutral.
//!
//! What the application does is here, without Spin, so that `cargo test` runs it on this machine:
//! a test gives it another `infer`.

#[cfg(target_arch = "wasm32")]
mod component;

pub const MODEL: &str = "llama2-chat";
pub const MAX_TOKENS: u32 = 8;
pub const TEMPERATURE: f32 = 0.0;

const MOODS: [&str; 3] = ["positive", "negative", "neutral"];

/// Return the status and the body for a text; `infer` continues a prompt.
pub fn answer<E>(text: &str, infer: impl FnOnce(&str) -> Result<String, E>) -> (u16, String) {
    match mood(text, infer) {
        Ok(mood) => (200, mood),
        Err(_) => (503, "try again later".to_owned()),
    }
}

fn mood<E>(text: &str, infer: impl FnOnce(&str) -> Result<String, E>) -> Result<String, E> {
    let answer = infer(&format!(
        "[INST] <<SYS>>\nRespond with a single positive, negative, or neutral.\n<</SYS>>\n\n{text} [/INST]"
    ))?;
    let word = answer.trim().to_lowercase();
    Ok(if MOODS.contains(&word.as_str()) {
        word
    } else {
        "unsure".to_owned()
    })
}
