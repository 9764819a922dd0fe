// Package mood is what the application does, without Spin, so that go test runs it on this machine.
package mood

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
)

const model = "llama2-chat"

const prompt = `[INST] <<SYS>>
Respond with a single positive, negative, or neutral.
<</SYS>>

%s [/INST]`

var moods = []string{"positive", "negative", "neutral"}

// Options of one answer.
type Options struct {
	MaxTokens   uint32  `json:"maxTokens"`
	Temperature float32 `json:"temperature"`
}

// Infer continues a prompt.
type Infer func(model, prompt string, options Options) (string, error)

// Answer returns the status and the body for a text.
func Answer(text string, infer Infer) (int, string) {
	answer, err := infer(model, fmt.Sprintf(prompt, text), Options{MaxTokens: 8, Temperature: 0})
	if err != nil {
		return http.StatusServiceUnavailable, "try again later"
	}
	word := strings.ToLower(strings.TrimSpace(answer))
	if !slices.Contains(moods, word) {
		word = "unsure"
	}
	return http.StatusOK, word
}
