// Package agentapi is what the CNI plugin and the agent say to each other: the agent to the plugin in the node's CNI
// configuration, the plugin to the agent by HTTP over a Unix socket, both in the form that Istio's plugin and agent use.
package agentapi

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// AddPath is where the plugin posts an AddRequest. Answers: 200 the pod may start, 400 the request is bad, 503 the agent
// is not ready and has not looked at the pod, anything else the pod must not start; the body says why.
const AddPath = "/cmdadd"

// Patience is how long the agent works on a pod that starts, waiting for a node proxy included.
const Patience = 25 * time.Second

// maxBody bounds a request's and an answer's body, in bytes.
const maxBody = 64 << 10

// AddRequest says that a pod's sandbox has come. Its JSON is that of Istio's plugin, which sends no PodUID.
type AddRequest struct {
	// Netns is the path of the network namespace on the host.
	Netns        string
	PodName      string
	PodNamespace string
	PodUID       string `json:",omitempty"`
	IPs          []IP
}

// IP is an address of the pod.
type IP struct {
	Interface *int `json:",omitempty"`
	Address   net.IPNet
	Gateway   net.IP `json:",omitempty"`
}

// Entry is the plugin's entry in a CNI configuration list; the plugin reads the same fields.
type Entry struct {
	Type string `json:"type"`
	// LogLevel is that of the plugin: debug, info, warn or error.
	LogLevel string `json:"log_level,omitempty"`
	// RunDir is where the agent's socket is, on the host.
	RunDir string `json:"cni_agent_run_dir"`
	// Kubeconfig is the plugin's own access to the API, for when the agent does not answer; a path on the host.
	Kubeconfig string `json:"kubeconfig"`
	// MeshNamespace is where the agent's own pods run.
	MeshNamespace string `json:"pod_namespace"`
	// ExcludeNamespaces are never captured.
	ExcludeNamespaces []string `json:"exclude_namespaces,omitempty"`
}

// ErrNoAnswer says that the agent did not answer, or was not ready, so that nothing is known of the pod.
var ErrNoAnswer = errors.New("no answer from the agent")

// Add asks the agent behind the socket. Nil means that the pod may start.
func Add(ctx context.Context, socket string, r AddRequest) error {
	body, err := json.Marshal(r)
	if err != nil {
		return err
	}
	var dialer net.Dialer
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return dialer.DialContext(ctx, "unix", socket)
	}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent"+AddPath, bytes.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxBody))
	reason := strings.TrimSpace(string(text))
	switch {
	case resp.StatusCode == http.StatusOK:
		return nil
	case err != nil:
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	case resp.StatusCode == http.StatusServiceUnavailable:
		return fmt.Errorf("%w: %s", ErrNoAnswer, reason)
	}
	return errors.New(reason)
}

// Handler serves AddPath. The add function returns nil if the pod may start; an error that wraps ErrNoAnswer becomes 503.
func Handler(add func(context.Context, AddRequest) error, observe func(status int)) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST "+AddPath, func(w http.ResponseWriter, req *http.Request) {
		status, text := answer(add, req)
		observe(status)
		w.WriteHeader(status)
		io.WriteString(w, text)
	})
	return mux
}

func answer(add func(context.Context, AddRequest) error, req *http.Request) (int, string) {
	var r AddRequest
	if err := json.NewDecoder(io.LimitReader(req.Body, maxBody)).Decode(&r); err != nil {
		return http.StatusBadRequest, "bad request: " + err.Error()
	}
	if r.Netns == "" || r.PodName == "" || r.PodNamespace == "" {
		return http.StatusBadRequest, "bad request: Netns, PodName and PodNamespace must be set"
	}
	ctx, cancel := context.WithTimeout(req.Context(), Patience)
	defer cancel()
	switch err := add(ctx, r); {
	case err == nil:
		return http.StatusOK, ""
	case errors.Is(err, ErrNoAnswer):
		return http.StatusServiceUnavailable, err.Error()
	default:
		return http.StatusInternalServerError, err.Error()
	}
}
