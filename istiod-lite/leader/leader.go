// Package leader lets one replica at a time do what only one may do.
package leader

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	coordinationv1 "k8s.io/client-go/kubernetes/typed/coordination/v1"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
)

// Times of the election: a leader that is cut off stops after renewBy, others take over after leaseFor.
const (
	leaseFor = 30 * time.Second
	renewBy  = 20 * time.Second
	retry    = 4 * time.Second
)

// Election is one election. All fields are required.
type Election struct {
	Client coordinationv1.CoordinationV1Interface
	// Namespace and Name are those of the Lease.
	Namespace, Name string
	// Identity is this replica's name, unlike any other's.
	Identity string
	Log      *slog.Logger
}

// Run takes part in the election until ctx ends, and runs lead whenever this replica leads. The context of lead ends when
// it no longer does; the next election waits for lead to return. The lease is given back at the end.
func (e *Election) Run(ctx context.Context, lead func(context.Context)) error {
	for ctx.Err() == nil {
		if err := e.once(ctx, lead); err != nil {
			return err
		}
	}
	return nil
}

func (e *Election) once(ctx context.Context, lead func(context.Context)) error {
	t := &term{done: make(chan struct{})}
	elector, err := leaderelection.NewLeaderElector(leaderelection.LeaderElectionConfig{
		Name: e.Name,
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Namespace: e.Namespace, Name: e.Name},
			Client:     e.Client,
			LockConfig: resourcelock.ResourceLockConfig{Identity: e.Identity},
		},
		LeaseDuration: leaseFor, RenewDeadline: renewBy, RetryPeriod: retry,
		ReleaseOnCancel: true,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: func(ctx context.Context) {
				if !t.begin() {
					return
				}
				defer close(t.done)
				e.Log.Info("leading", "lease", e.Name)
				lead(ctx)
				e.Log.Info("no longer leading", "lease", e.Name)
			},
			OnStoppedLeading: func() {},
		},
	})
	if err != nil {
		return fmt.Errorf("take part in election %s: %w", e.Name, err)
	}
	elector.Run(ctx)
	t.end()
	return nil
}

// term is one time of leading. The library starts it in a goroutine of its own, at any time before or after the election
// is over.
type term struct {
	mu    sync.Mutex // guards the fields below
	begun bool
	ended bool
	done  chan struct{} // closed when what was begun is over
}

// begin reports whether there is still something to lead.
func (t *term) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.begun = !t.ended
	return t.begun
}

// end keeps the term from beginning, or waits until it is over.
func (t *term) end() {
	t.mu.Lock()
	t.ended = true
	begun := t.begun
	t.mu.Unlock()
	if begun {
		<-t.done
	}
}
