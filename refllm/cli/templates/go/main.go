//go:build tinygo

// The component: Spin's SDK calls the handler, which asks Spin's models.
package main

import (
	"io"
	"net/http"

	spinhttp "github.com/spinframework/spin-go-sdk/v2/http"
	"github.com/spinframework/spin-go-sdk/v2/llm"

	"example.com/@NAME@/mood"
)

func init() {
	spinhttp.Handle(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		status, body := mood.Answer(string(text), infer)
		w.Header().Set("content-type", "text/plain")
		w.WriteHeader(status)
		io.WriteString(w, body)
	})
}

func infer(model, prompt string, options mood.Options) (string, error) {
	// The SDK sends every field, so each needs its value; these are Spin's defaults.
	result, err := llm.Infer(model, prompt, &llm.InferencingParams{
		MaxTokens:                    int32(options.MaxTokens),
		RepeatPenalty:                1.1,
		RepeatPenaltyLastNTokenCount: 64,
		Temperature:                  options.Temperature,
		TopK:                         40,
		TopP:                         0.9,
	})
	if err != nil {
		return "", err
	}
	return result.Text, nil
}

func main() {}
