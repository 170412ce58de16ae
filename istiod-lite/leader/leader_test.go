package leader

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

// replica takes part in an election, and says what it does.
type replica struct {
	election Election
	stop     context.CancelFunc
	done     chan struct{}

	mu      sync.Mutex
	leading bool
	terms   int
}

func (r *replica) lead(ctx context.Context) {
	r.set(true)
	<-ctx.Done()
	time.Sleep(time.Second) // what it does takes a moment to end
	r.set(false)
}

func (r *replica) set(leading bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.leading = leading; leading {
		r.terms++
	}
}

func (r *replica) state() (leading bool, terms int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.leading, r.terms
}

func start(t *testing.T, client *fake.Clientset, name string) *replica {
	ctx, cancel := context.WithCancel(context.Background())
	r := &replica{stop: cancel, done: make(chan struct{}), election: Election{
		Client: client.CoordinationV1(), Namespace: "istio-system", Name: "l", Identity: name, Log: slog.New(slog.DiscardHandler)}}
	go func() {
		defer close(r.done)
		if err := r.election.Run(ctx, r.lead); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}()
	return r
}

func want(t *testing.T, r *replica, leading bool, terms int, when string) {
	t.Helper()
	synctest.Wait()
	if l, n := r.state(); l != leading || n != terms {
		t.Errorf("%s: leading %t for the %dth time, want %t for the %dth", when, l, n, leading, terms)
	}
}

func TestElection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fake.NewClientset()
		var cut atomic.Bool
		client.PrependReactor("*", "leases", func(clienttesting.Action) (bool, runtime.Object, error) {
			return cut.Load(), nil, apierrors.NewServerTimeout(schema.GroupResource{Resource: "leases"}, "update", 1)
		})
		first := start(t, client, "first")
		time.Sleep(time.Second)
		want(t, first, true, 1, "alone")
		second := start(t, client, "second")
		time.Sleep(time.Minute)
		want(t, first, true, 1, "after the second came")
		want(t, second, false, 0, "after it came")

		// One that goes gives the lease back, and has ended what it led when Run returns.
		first.stop()
		<-first.done
		want(t, first, false, 1, "after it was stopped")
		time.Sleep(2 * retry)
		want(t, second, true, 1, "after the first went")

		// One that is cut off stops leading before another may begin, and comes back when it can.
		cut.Store(true)
		time.Sleep(renewBy + 2*retry)
		want(t, second, false, 1, "cut off")
		cut.Store(false)
		time.Sleep(leaseFor + 2*retry)
		want(t, second, true, 2, "back again")
		second.stop()
		<-second.done
	})
}

// A term whose election is over before it begins does not begin.
func TestLateTerm(t *testing.T) {
	late := &term{done: make(chan struct{})}
	late.end()
	if late.begin() {
		t.Error("a term began after its end")
	}
}
