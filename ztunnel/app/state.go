package app

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/ambit-mesh/ambit/mesh/identity"
	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/ztunnel/saved"
)

// Timing of what outlives the process.
const (
	// How long a proxy that has a saved configuration waits for the control plane's before it serves from it: savedAfter while there
	// is no stream; silentAfter since the control plane last said something, or was first there, since one that has just started
	// may have much to gather before its first word, and its first push of addresses may be large; longest in any case.
	savedAfter  = 3 * time.Second
	silentAfter = 15 * time.Second
	longest     = time.Minute
	// glance is how often it is looked at then.
	glance = 100 * time.Millisecond
	// contactInterval is how often it is seen whether the control plane is there.
	contactInterval = time.Second
	// keySweep is how often keys are looked for that nobody needs, and how old those must be.
	keySweep = time.Minute
)

// state is what the proxy knows of the cluster from an earlier time, and how old that is.
type state struct {
	store    *saved.Store
	restored int          // resources
	contact  atomic.Int64 // when the control plane was last there, in Unix nanoseconds; 0 if never
	fromDisk atomic.Bool  // the proxy serves, and the control plane has not answered yet
}

// age is how long the control plane has been away.
func (s *state) age() time.Duration {
	at := s.contact.Load()
	if at == 0 {
		return 0
	}
	return max(0, time.Since(time.Unix(0, at))).Round(time.Second)
}

// openState opens the saved configuration, and returns the handlers that keep it.
func (p *parts) openState(handlers []xds.Handler) []xds.Handler {
	if p.cfg.StateDir == "" {
		return handlers
	}
	types := make([]string, len(handlers))
	for i, h := range handlers {
		types[i] = h.TypeURL
	}
	store, contents, err := saved.Open(saved.Config{
		Dir: p.cfg.StateDir, Types: types, Logger: p.target("state"),
		Unsettled: func(typeURL, name string) bool {
			return typeURL == xds.TypeAuthorization && p.directory.Narrowing(name)
		},
		Owner: fmt.Sprintf("cluster %s, network %q, node %s", p.cfg.ClusterID, p.cfg.Network, p.cfg.Node.Name),
	})
	if err != nil {
		p.logger.Error("the configuration is not saved; should this proxy start again while the control plane is away, it has none", "error", err)
		return handlers
	}
	p.state.store = store
	p.saved = p.usable(contents, time.Now())
	p.closers = append(p.closers, store)
	for i := range handlers {
		handlers[i] = store.Wrap(handlers[i])
	}
	return handlers
}

// usable returns what was saved unless it is too old.
func (p *parts) usable(contents *saved.Contents, now time.Time) *saved.Contents {
	if contents == nil {
		return nil
	}
	if age := now.Sub(contents.At); age > p.cfg.StateMaxAge {
		p.logger.Warn("the saved configuration is too old to serve from; waiting for the control plane", "age", age.Round(time.Second).String(),
			"AMBIT_STATE_MAX_AGE", p.cfg.StateMaxAge.String())
		return nil
	}
	return contents
}

// restoreState gives the rooms what was saved.
func (p *parts) restoreState(registry prometheus.Registerer) error {
	registry.MustRegister(prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "ambit_configuration_age_seconds",
		Help: "How long ago the control plane was last there; 0 while it is. The proxy serves from what it knew then."},
		func() float64 {
			if p.discovery.Status().Connected {
				return 0
			}
			return p.state.age().Seconds()
		}))
	if p.saved == nil {
		return nil
	}
	for i, t := range p.types {
		if err := p.discovery.Restore(t, p.saved.Resources[i]); err != nil {
			return err
		}
	}
	p.state.restored = p.saved.Count()
	p.state.contact.Store(p.saved.At.UnixNano())
	p.saved = nil
	return nil
}

// keepState saves the configuration, and sees whether the control plane is there, until the context ends.
func (p *parts) keepState(ctx context.Context) error {
	connected := func() bool { return p.discovery.Status().Connected }
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		tick := time.NewTicker(contactInterval)
		defer tick.Stop()
		for {
			if connected() {
				p.state.contact.Store(time.Now().UnixNano())
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	defer func() { <-watched }()
	if p.state.store == nil {
		return nil
	}
	return p.state.store.Run(ctx, p.discovery.Synced(), connected)
}

// awaitState returns once the cluster's state is known: the present one, or an earlier one if the control plane is away.
func (p *parts) awaitState(ctx context.Context) error {
	var look <-chan time.Time
	if p.state.restored > 0 {
		tick := time.NewTicker(glance)
		defer tick.Stop()
		look = tick.C
	}
	waiting := wait{start: time.Now()}
	for {
		select {
		case <-p.discovery.Synced():
			p.logger.Info("the control plane's state is known; asking the CNI agent for pods")
			return nil
		case now := <-look:
			status := p.discovery.Status()
			if !waiting.over(now, status) {
				continue
			}
			what := "the control plane is away"
			if !status.Opened.IsZero() {
				what = "the control plane is there but has not told all"
			}
			p.state.fromDisk.Store(true)
			p.logger.Warn(what+"; serving from the configuration that was saved",
				"age", p.state.age().String(), "resources", p.state.restored, "error", status.LastError)
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// wait is for the control plane's state where there is an earlier one.
type wait struct {
	start time.Time
	first time.Time // when there was a stream first; zero: never
	last  time.Time // the same, last
}

// over tells whether it was waited long enough.
func (w *wait) over(now time.Time, s xds.Status) bool {
	if !s.Opened.IsZero() {
		w.last = now
		if w.first.IsZero() {
			w.first = s.Opened
		}
	}
	switch sign := latest(w.first, s.Heard); {
	case now.Sub(w.start) >= longest, !sign.IsZero() && now.Sub(sign) >= silentAfter:
		return true
	case s.Opened.IsZero():
		return now.Sub(latest(w.start, w.last)) >= savedAfter
	}
	return false
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// stateKnown tells whether awaitState has what it waits for.
func (p *parts) stateKnown() bool {
	select {
	case <-p.discovery.Synced():
		return true
	default:
		return p.state.fromDisk.Load()
	}
}

// remark says what is to be known about a proxy that is ready; "" if nothing is.
func (p *parts) remark() string {
	if p.discovery.Status().Connected || p.state.contact.Load() == 0 {
		return ""
	}
	return fmt.Sprintf("the control plane is away: serving from a configuration of %s ago", p.state.age())
}

// openKeys opens the folder of certificates and keys, if there is to be one.
func (p *parts) openKeys() {
	if p.cfg.KeyDir == "" {
		return
	}
	var err error
	if p.keys, err = identity.OpenKeyDir(p.cfg.KeyDir, p.target("identity")); err != nil {
		p.logger.Error("certificates do not outlive this process; should it start again while the CA is away, tunnels are refused", "error", err)
	}
}

// sweepKeys removes keys that nobody needs, as long as no newer proxy does.
func (p *parts) sweepKeys(ctx context.Context) error {
	if p.keys == nil {
		return nil
	}
	tick := time.NewTicker(keySweep)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		if p.sockets.Superseded() {
			continue
		}
		var used []identity.Identity
		for _, s := range p.certs.Snapshot() {
			used = append(used, s.Identity)
		}
		if err := p.keys.Sweep(used, keySweep); err != nil {
			p.logger.Warn("keys that nobody needs are left", "error", err)
		}
	}
}
