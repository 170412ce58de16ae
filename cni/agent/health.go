package agent

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// stall is how long the loop may not go round before the agent says that it is not alive.
const stall = 30 * time.Second

// Health serves /healthz, /readyz and /release. Ready means that pods can start captured: the plugin is installed, and the
// agent answers it and node proxies.
func (a *Agent) Health() http.Handler {
	mux := http.NewServeMux()
	answer := func(problem func() string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			if text := problem(); text != "" {
				http.Error(w, text, http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		}
	}
	mux.HandleFunc("GET /healthz", answer(func() string {
		if beat := a.beat.Load(); beat != 0 && a.serving.Load() && time.Since(time.Unix(0, beat)) > stall {
			return "the agent's loop stands still"
		}
		return ""
	}))
	mux.HandleFunc("GET /readyz", answer(func() string {
		switch {
		case !a.serving.Load():
			return "starting: reading pods and namespaces from the API"
		case a.report.Load().Phase == phaseServing && !a.cfg.Installation.Installed():
			return "the CNI plugin is not installed yet: no configuration of the network's own plugin to chain to"
		}
		return ""
	}))
	mux.HandleFunc("GET /release", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(a.report.Load())
	})
	return mux
}
