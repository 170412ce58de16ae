// Package debug shows people what the control plane knows and what it told whom. It is served on loopback only, since
// it asks nobody who they are.
package debug

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"
	"strings"

	clusterv3 "github.com/envoyproxy/go-control-plane/envoy/config/cluster/v3"
	endpointv3 "github.com/envoyproxy/go-control-plane/envoy/config/endpoint/v3"
	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/ambit-mesh/ambit/api/extension"
	"github.com/ambit-mesh/ambit/api/security"
	"github.com/ambit-mesh/ambit/api/workload"
	"github.com/ambit-mesh/ambit/istiod-lite/resource"
	"github.com/ambit-mesh/ambit/istiod-lite/state"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
	"github.com/ambit-mesh/ambit/istiod-lite/xds"
)

// Views are what is shown. All fields are required.
type Views struct {
	Hub       *xds.Hub
	Waypoints *xds.Waypoints
	Loop      *state.Loop
	// Status tells what each part waits for or suffers from; what is well is not in it.
	Status func() map[string]string
}

// Handler serves the views; GET /debug lists them.
func (v Views) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /debug", index)
	mux.HandleFunc("GET /debug/{$}", index)
	mux.HandleFunc("GET /debug/adsz", v.clients)
	mux.HandleFunc("GET /debug/configz", v.config)
	mux.HandleFunc("GET /debug/problemz", v.problems)
	mux.HandleFunc("GET /debug/mesh", v.mesh)
	mux.HandleFunc("GET /debug/statusz", func(w http.ResponseWriter, _ *http.Request) { answer(w, v.Status()) })
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	return mux
}

const help = `/debug/adsz       who is connected, what they subscribed to, and the last pushes to each
/debug/configz    the resources that are served to node proxies; ?type=Address|Authorization and ?name=<part of the name> pick
                  some; ?waypoint=<namespace>/<name> shows those of a waypoint instead
/debug/problemz   what is malformed or conflicting in the cluster's objects
/debug/mesh       the mesh settings in force
/debug/statusz    what each part waits for or suffers from
/debug/pprof/     Go's profiles
`

func index(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	_, _ = w.Write([]byte(help)) // whoever asked may be gone
}

func (v Views) clients(w http.ResponseWriter, _ *http.Request) {
	answer(w, append(v.Hub.Clients(), v.Waypoints.Clients()...))
}

// config shows resources as they are sent, and the version that each has.
func (v Views) config(w http.ResponseWriter, r *http.Request) {
	type entry struct {
		Type    string          `json:"type"`
		Name    string          `json:"name"`
		Version string          `json:"version"`
		Content json.RawMessage `json:"content"`
	}
	part, typ := r.FormValue("name"), r.FormValue("type")
	out := []entry{}
	hub := v.Hub
	if name := r.FormValue("waypoint"); name != "" {
		if hub = v.Waypoints.Hub(name); hub == nil {
			http.Error(w, fmt.Sprintf("there is no waypoint %s; there are %v", name, v.Waypoints.Names()), http.StatusNotFound)
			return
		}
	}
	for t := range resource.Type(resource.Types) {
		if typ != "" && !strings.EqualFold(typ, t.String()) {
			continue
		}
		for _, res := range hub.Resources(t) {
			if !strings.Contains(res.Name, part) {
				continue
			}
			content := message(t)
			err := res.Decode(content)
			var text []byte
			if err == nil {
				text, err = protojson.Marshal(content)
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
			out = append(out, entry{t.String(), res.Name, res.Version, text})
		}
	}
	answer(w, out)
}

func message(t resource.Type) proto.Message {
	switch t {
	case resource.Settings:
		return &extension.Settings{}
	case resource.Authorization:
		return &security.Authorization{}
	case resource.Cluster:
		return &clusterv3.Cluster{}
	case resource.Endpoints:
		return &endpointv3.ClusterLoadAssignment{}
	case resource.Listener:
		return &listenerv3.Listener{}
	case resource.Routes:
		return &routev3.RouteConfiguration{}
	}
	return &workload.Address{}
}

func (v Views) problems(w http.ResponseWriter, r *http.Request) {
	type entry struct {
		Kind    string `json:"kind"`
		Object  string `json:"object"`
		Problem string `json:"problem"`
	}
	var found []translate.Problem
	if err := v.Loop.Do(r.Context(), func(s *state.State) { found = s.Problems() }); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	out := []entry{}
	for _, p := range found {
		out = append(out, entry{string(p.Kind), p.Key.String(), p.Message})
	}
	answer(w, out)
}

func (v Views) mesh(w http.ResponseWriter, r *http.Request) {
	var m translate.Mesh
	if err := v.Loop.Do(r.Context(), func(s *state.State) { m = s.Mesh() }); err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	answer(w, struct {
		Mesh     translate.Mesh `json:"mesh"`
		Settings any            `json:"settings"`
	}{m, v.Loop.Settings()})
}

func answer(w http.ResponseWriter, what any) {
	text, err := json.MarshalIndent(what, "", "  ")
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(text, '\n')) // whoever asked may be gone
}
