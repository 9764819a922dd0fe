package mood

import (
	"bytes"
	"encoding/json"
	"errors"
	"net/http"
	"os"
	"testing"
)

const happy = "I love this song."

// asking returns what asks as Spin asks a server for a model.
func asking(t *testing.T) Infer {
	url := os.Getenv("REFLLM_URL")
	if url == "" {
		url = "http://127.0.0.1:8177"
	}
	return func(model, prompt string, options Options) (string, error) {
		asked := map[string]any{"model": model, "prompt": prompt, "options": options}
		body, _ := json.Marshal(asked)
		response, err := http.Post(url+"/infer", "application/json", bytes.NewReader(body))
		if err != nil {
			t.Fatalf("%v: start refllm serve --stand-ins", err)
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return "", errors.New(response.Status)
		}
		var answer struct{ Text string }
		err = json.NewDecoder(response.Body).Decode(&answer)
		return answer.Text, err
	}
}

func TestAHappyTextIsPositive(t *testing.T) {
	if status, body := Answer(happy, asking(t)); status != 200 || body != "positive" {
		t.Errorf("got %d %q", status, body)
	}
}

func TestAModelThatFailsIsNoReasonToFail(t *testing.T) {
	failing := func(string, string, Options) (string, error) { return "", errors.New("out of memory") }
	if status, body := Answer(happy, failing); status != 503 || body != "try again later" {
		t.Errorf("got %d %q", status, body)
	}
}
