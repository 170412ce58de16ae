// Package whoami lets a sample service say who answered and whom it saw: its pod and node, and the address that the
// connection came from. It is how a person, or a test, sees on the application's side what the mesh did on the way.
package whoami

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
)

// Who is one answer.
type Who struct {
	// Pod, Namespace and Node come from the environment variables POD_NAME, POD_NAMESPACE and NODE_NAME, which a
	// manifest sets by the downward API. Pod falls back to the host name, which Kubernetes sets to the pod's name.
	Pod       string `json:"pod"`
	Namespace string `json:"namespace,omitempty"`
	Node      string `json:"node,omitempty"`
	// Client is the address and port that the server saw at the other end of the connection.
	Client string `json:"client"`
	// Server is the address and port at this end.
	Server string `json:"server"`
	// Request is the first line of the HTTP request, and Host what it asked for; empty for other protocols.
	Request string `json:"request,omitempty"`
	Host    string `json:"host,omitempty"`
	// Header holds the request's headers where the client asked for them by the query ?headers.
	Header http.Header `json:"header,omitempty"`
}

// Me fills what does not depend on the connection.
func Me() Who {
	pod := os.Getenv("POD_NAME")
	if pod == "" {
		pod, _ = os.Hostname() // a server without a name still answers
	}
	return Who{Pod: pod, Namespace: os.Getenv("POD_NAMESPACE"), Node: os.Getenv("NODE_NAME")}
}

// Handler answers every request with a Who as one line of JSON.
func Handler(me Who) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		who := me
		who.Client = r.RemoteAddr
		if local, ok := r.Context().Value(http.LocalAddrContextKey).(fmt.Stringer); ok {
			who.Server = local.String()
		}
		who.Request = r.Method + " " + r.URL.RequestURI()
		who.Host = r.Host
		if r.URL.Query().Has("headers") {
			who.Header = r.Header
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(who) // the client has gone: nobody to tell
	})
}
