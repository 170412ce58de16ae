package config

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	listenerv3 "github.com/envoyproxy/go-control-plane/envoy/config/listener/v3"
	routev3 "github.com/envoyproxy/go-control-plane/envoy/config/route/v3"
	discoveryv3 "github.com/envoyproxy/go-control-plane/envoy/service/discovery/v3"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/ambit-mesh/ambit/mesh/xds"
	"github.com/ambit-mesh/ambit/waypoint/route"
	"github.com/ambit-mesh/ambit/waypoint/strict"
)

// Store takes resources from the control plane and publishes snapshots. Its zero value is not usable: NewStore makes one.
type Store struct {
	snapshot atomic.Pointer[Snapshot]
	changed  func(old, new *Snapshot)

	mu sync.Mutex // guards the fields below
	// kinds are the resources as they came, by type, for the dump and to know what comes again.
	kinds [kindCount]map[string]*resource
	// clusters are what the Cluster resources say, assignments what the ClusterLoadAssignments say; either may come first.
	clusters    map[string]clusterRead
	assignments map[string]*Endpoints
	// workloads are those whose own addresses are served, by name.
	workloads map[string]*Direct
	// desired is main_internal as it came; what is in force keeps a former chain for a destination until the new one has its
	// routes. sources are its chains, by name.
	desired *inbound
	sources map[string]chainSource
	// news is closed when a snapshot is published.
	news chan struct{}
}

// partly is the error of a resource of which the good parts are in force.
type partly struct{ error }

// kind is a type of resources.
type kind uint8

const (
	kindCluster kind = iota
	kindEndpoints
	kindListener
	kindRoutes
	kindCount
)

// resource is one resource as it came.
type resource struct {
	version string
	any     *anypb.Any // nil if none was ever accepted
	updated time.Time
	partly  error // what of it is not in force, and why
	// refused is the last one that was rejected since, if any was.
	refused        *anypb.Any
	refusedVersion string
	refusedAt      time.Time
	cause          error
}

// NewStore makes a Store, whose first snapshot is empty. changed, unless it is nil, is called after each publication with the
// snapshot before and the new one, by the goroutine that applied a push: it must not block for long, and must not call the
// handlers.
func NewStore(changed func(old, new *Snapshot)) *Store {
	s := &Store{changed: changed, clusters: map[string]clusterRead{}, assignments: map[string]*Endpoints{}, workloads: map[string]*Direct{}, news: make(chan struct{})}
	for k := range s.kinds {
		s.kinds[k] = map[string]*resource{}
	}
	s.snapshot.Store(&Snapshot{})
	return s
}

// Load returns the present snapshot. It never blocks.
func (s *Store) Load() *Snapshot { return s.snapshot.Load() }

// Await returns the first snapshot, from the present one on, for which ok returns true; ctx's error if it ends before.
func (s *Store) Await(ctx context.Context, ok func(*Snapshot) bool) (*Snapshot, error) {
	for {
		s.mu.Lock()
		news := s.news
		s.mu.Unlock()
		if now := s.Load(); ok(now) {
			return now, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-news:
		}
	}
}

// Handlers returns the handlers of an xDS client, in the order in which to subscribe: what is referred to before what refers. That of
// workloads is ApplyWorkloads.
func (s *Store) Handlers() []xds.Handler {
	return []xds.Handler{
		{TypeURL: xds.TypeCluster, Apply: s.applyClusters},
		{TypeURL: xds.TypeEndpoints, Apply: s.applyEndpoints},
		{TypeURL: xds.TypeListener, Apply: s.applyListeners},
		{TypeURL: xds.TypeRoutes, Apply: s.applyRoutes},
	}
}

// take goes through a push: accept reads each resource that is not in force already as it is; drop forgets one. Both are called
// with the lock.
func (s *Store) take(k kind, upserts []*discoveryv3.Resource, removed []string, accept func(name string, a *anypb.Any) error, drop func(name string)) []xds.Rejection {
	var rejections []xds.Rejection
	known := s.kinds[k]
	for _, name := range removed {
		if known[name] != nil {
			delete(known, name)
			drop(name)
		}
	}
	for _, up := range upserts {
		name, a := up.GetName(), up.GetResource()
		res := known[name]
		if res == nil {
			res = &resource{}
			known[name] = res
		}
		if res.any != nil && a != nil && res.partly == nil && proto.Equal(res.any, a) {
			res.version, res.refused, res.cause = up.GetVersion(), nil, nil
			continue
		}
		err := check(up)
		if err == nil {
			err = accept(name, a)
		}
		if part := (partly{}); errors.As(err, &part) {
			*res = resource{version: up.GetVersion(), any: a, updated: time.Now(), partly: part.error}
			rejections = append(rejections, xds.Rejection{Name: name, Err: part.error, Replaced: true})
			continue
		}
		if err != nil {
			res.refused, res.refusedVersion, res.refusedAt, res.cause = a, up.GetVersion(), time.Now(), err
			rejections = append(rejections, xds.Rejection{Name: name, Err: err})
			continue
		}
		*res = resource{version: up.GetVersion(), any: a, updated: time.Now()}
	}
	return rejections
}

// check refuses what a resource's envelope asks for and is not supported.
func check(r *discoveryv3.Resource) error {
	switch {
	case r.GetResource() == nil:
		return errors.New("resource: required")
	case r.GetTtl() != nil:
		return errors.New("ttl: not supported: leave it out")
	}
	return nil
}

// publish makes next the present snapshot, with the lock; the function that it returns is to be called without it.
func (s *Store) publish(next *Snapshot) func() {
	old := s.snapshot.Swap(next)
	close(s.news)
	s.news = make(chan struct{})
	return func() {
		if s.changed != nil {
			s.changed(old, next)
		}
	}
}

// apply runs change with the lock; it returns the next snapshot, or nil if nothing has changed.
func (s *Store) apply(change func(now Snapshot) (*Snapshot, []xds.Rejection)) []xds.Rejection {
	s.mu.Lock()
	next, rejections := change(*s.Load())
	tell := func() {}
	if next != nil {
		tell = s.publish(next)
	}
	s.mu.Unlock()
	tell()
	return rejections
}

func (s *Store) applyClusters(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
	return s.apply(func(now Snapshot) (*Snapshot, []xds.Rejection) {
		touched := map[string]bool{}
		rejections := s.take(kindCluster, upserts, removed, func(name string, a *anypb.Any) error {
			read, err := readCluster(name, a)
			if err != nil {
				return err
			}
			if old := s.clusters[name].settings; old != nil && reflect.DeepEqual(old, read.settings) {
				read.settings = old
			}
			s.clusters[name] = read
			touched[name] = true
			return nil
		}, func(name string) {
			delete(s.clusters, name)
			touched[name] = true
		})
		return s.join(now, touched), rejections
	})
}

func (s *Store) applyEndpoints(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
	return s.apply(func(now Snapshot) (*Snapshot, []xds.Rejection) {
		touched := map[string]bool{}
		rejections := s.take(kindEndpoints, upserts, removed, func(name string, a *anypb.Any) error {
			read, err := readEndpoints(name, a, s.assignments[name])
			if err != nil {
				return err
			}
			s.assignments[name] = read
			touched[name] = true
			return nil
		}, func(name string) {
			delete(s.assignments, name)
			touched[name] = true
		})
		return s.join(now, touched), rejections
	})
}

// join puts clusters and their endpoints together again, for those names.
func (s *Store) join(now Snapshot, names map[string]bool) *Snapshot {
	changes := map[string]*Cluster{}
	for name := range names {
		var next *Cluster
		if read := s.clusters[name]; read.settings != nil {
			next = &Cluster{Name: name, Settings: read.settings, Endpoints: read.inline}
			if read.eds {
				next.Endpoints = s.assignments[name]
			}
		}
		old, _ := now.clusters.get(name)
		if next == old || next != nil && old != nil && *next == *old {
			continue
		}
		changes[name] = next
	}
	if len(changes) == 0 {
		return nil
	}
	now.clusters = now.clusters.with(changes)
	return &now
}

func (s *Store) applyListeners(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
	return s.apply(func(now Snapshot) (*Snapshot, []xds.Rejection) {
		touched := false
		rejections := s.take(kindListener, upserts, removed, func(name string, a *anypb.Any) error {
			if name != listenerInbound {
				t, err := readListener(name, a)
				if err == nil && name == listenerTerminate && (now.terminate == nil || *t != *now.terminate) {
					now.terminate, touched = t, true
				}
				return err
			}
			var read inboundRead
			var whole bool // it is not only chains that cannot be honoured
			err := decode(a, supported, &listenerv3.Listener{}, func(d decoder, l *listenerv3.Listener) {
				d.named("name", l.GetName(), name)
				read = d.inbound(l, s.sources)
				whole = slices.ContainsFunc(d.report.Problems(), func(p strict.Problem) bool { return !strings.HasPrefix(p.Path, "filter_chains[") })
			})
			if read.inbound == nil || whole {
				return err
			}
			s.desired, s.sources, touched = read.inbound, read.sources, true
			if err != nil {
				return partly{err}
			}
			return nil
		}, func(name string) {
			touched = true
			switch name {
			case listenerTerminate:
				now.terminate = nil
			case listenerInbound:
				s.desired, s.sources = nil, nil
			}
		})
		if !touched {
			return nil, rejections
		}
		now.inbound = s.desired.inForce(now.inbound, now.routes)
		return &now, rejections
	})
}

func (s *Store) applyRoutes(upserts []*discoveryv3.Resource, removed []string) []xds.Rejection {
	return s.apply(func(now Snapshot) (*Snapshot, []xds.Rejection) {
		changes := map[string]*route.Table{}
		rejections := s.take(kindRoutes, upserts, removed, func(name string, a *anypb.Any) error {
			var rc routev3.RouteConfiguration
			if want := rc.ProtoReflect().Descriptor().FullName(); a.MessageName() != want {
				return fmt.Errorf("is a %s, not a %s", a.MessageName(), want)
			}
			if err := proto.Unmarshal(a.GetValue(), &rc); err != nil {
				return err
			}
			if rc.GetName() != name {
				return fmt.Errorf("name: is %q, but the resource was sent as %q", rc.GetName(), name)
			}
			t, err := route.Compile(&rc)
			if err == nil {
				old, _ := now.routes.get(name)
				t.Inherit(old)
				changes[name] = t
			}
			return err
		}, func(name string) { changes[name] = nil })
		if len(changes) == 0 {
			return nil, rejections
		}
		now.routes = now.routes.with(changes)
		if now.inbound != nil && now.inbound.waiting {
			now.inbound = s.desired.inForce(now.inbound, now.routes)
		}
		return &now, rejections
	})
}
