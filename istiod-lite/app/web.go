package app

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/ambit-mesh/ambit/istiod-lite/debug"
	"github.com/ambit-mesh/ambit/istiod-lite/state"
)

// Parts that readiness waits for.
const (
	partCA    = "ca"
	partState = "state"
	partDrain = "drain"
)

// readiness is what keeps the program from being ready. It is safe for concurrent use.
type readiness struct {
	mu    sync.Mutex // guards parts
	parts map[string]string
}

func newReadiness() *readiness { return &readiness{parts: map[string]string{partCA: "not loaded yet"}} }

// set says what a part waits for, "" if nothing.
func (s *readiness) set(part, waitsFor string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if waitsFor == "" {
		delete(s.parts, part)
	} else {
		s.parts[part] = waitsFor
	}
}

func (s *readiness) all() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return maps.Clone(s.parts)
}

// notReady tells what keeps the program from being ready; it is empty if nothing does.
func (p *program) notReady() map[string]string {
	out := p.status.all()
	if waiting := p.loop.Waiting(); waiting != "" {
		out[partState] = "waits for " + waiting
		for kind, cause := range p.source.Errors() {
			out["watch "+string(kind)] = cause
		}
	}
	return out
}

// statusAll is notReady and what does not go well besides.
func (p *program) statusAll() map[string]string {
	out := p.notReady()
	for kind, cause := range p.source.Errors() {
		out["watch "+string(kind)] = cause
	}
	return out
}

// web are the HTTP servers: monitoring, and debug if asked for.
type web struct {
	monitoring, debug net.Listener
	servers           []*http.Server
	listeners         []net.Listener
}

// headerTimeout bounds the time that an HTTP client takes for a request's header.
const headerTimeout = 10 * time.Second

func (p *program) listenWeb() (*web, error) {
	w := &web{}
	var err error
	if w.monitoring, err = net.Listen("tcp", p.cfg.MonitoringAddr); err != nil {
		return nil, fmt.Errorf("listen for monitoring: %w", err)
	}
	w.add(w.monitoring, p.monitoringHandler())
	if p.cfg.DebugAddr == "" {
		return w, nil
	}
	if w.debug, err = net.Listen("tcp", p.cfg.DebugAddr); err != nil {
		w.close()
		return nil, fmt.Errorf("listen for debug views: %w", err)
	}
	w.add(w.debug, debug.Views{Hub: p.hub, Waypoints: p.waypoints, Loop: p.loop, Status: p.statusAll}.Handler())
	return w, nil
}

func (w *web) add(ln net.Listener, h http.Handler) {
	w.listeners = append(w.listeners, ln)
	w.servers = append(w.servers, &http.Server{Handler: h, ReadHeaderTimeout: headerTimeout})
}

// serve starts the servers. Their goroutines end with close.
func (w *web) serve(rooms *sync.WaitGroup, failed chan<- error) {
	for i, server := range w.servers {
		rooms.Go(func() {
			if err := server.Serve(w.listeners[i]); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("serve %s: %w", w.listeners[i].Addr(), err)
			}
		})
	}
}

func (w *web) close() {
	for i, server := range w.servers {
		server.Close()
		w.listeners[i].Close() // Serve may not have taken it yet
	}
}

func (p *program) monitoringHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", p.healthz)
	mux.HandleFunc("GET /ready", func(w http.ResponseWriter, _ *http.Request) {
		waiting := p.notReady()
		if len(waiting) == 0 {
			fmt.Fprintln(w, "ready")
			return
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		for _, part := range slices.Sorted(maps.Keys(waiting)) {
			fmt.Fprintf(w, "%s: %s\n", part, strings.ReplaceAll(waiting[part], "\n", " "))
		}
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.registry, promhttp.HandlerOpts{EnableOpenMetrics: true}))
	return mux
}

// loopTimeout is how long the loop may take to answer before the program is not alive; a first translation of 100,000 pods
// takes a few seconds.
const loopTimeout = 30 * time.Second

// healthz says whether the loop turns.
func (p *program) healthz(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), loopTimeout)
	defer cancel()
	if err := p.loop.Do(ctx, func(*state.State) {}); err != nil {
		http.Error(w, "the state loop does not answer: "+err.Error(), http.StatusInternalServerError)
		return
	}
	fmt.Fprintln(w, "ok")
}
