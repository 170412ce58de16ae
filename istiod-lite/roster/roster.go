// Package roster knows which pods run where, for whoever must decide what a caller may have. It learns them from the same
// watch as the state, and asks the API server before it says that a pod does not exist: a fresh pod's proxy may call before
// the watch has told of the pod.
package roster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"golang.org/x/time/rate"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// ErrNotFound is wrapped when there is no such pod, and the API server says so too.
var ErrNotFound = errors.New("no such pod")

// API asks the API server itself, not a cache.
type API interface {
	// Pod returns a pod, or nil if there is none.
	Pod(ctx context.Context, key cluster.Key) (*cluster.Pod, error)
	// PodsOn lists the pods of a namespace that are bound to a node.
	PodsOn(ctx context.Context, node, namespace string) ([]*cluster.Pod, error)
}

// Limits of questions to the API server: callers that ask for what does not exist must not make it their burden.
const (
	questionsPerSecond = 50
	questionsAtOnce    = 100
)

// account is a service account on a node.
type account struct{ node, namespace, name string }

// Roster is safe for concurrent use. Make one with New.
type Roster struct {
	api   API
	limit *rate.Limiter
	calls singleflight.Group

	mu      sync.RWMutex // guards the fields below; never held across a call
	pods    map[cluster.Key]*cluster.Pod
	running map[account]int // pods that are not terminal
}

// New returns a Roster that knows no pod.
func New(api API) *Roster {
	return &Roster{
		api:     api,
		limit:   rate.NewLimiter(questionsPerSecond, questionsAtOnce),
		pods:    map[cluster.Key]*cluster.Pod{},
		running: map[account]int{},
	}
}

// Observe takes an event of the watch. Events of other kinds are ignored.
func (r *Roster) Observe(e cluster.Event) {
	if e.Kind != cluster.KindPod {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch e.Op {
	case cluster.Upsert:
		r.set(e.Key, e.Object.(*cluster.Pod))
	case cluster.Delete:
		r.set(e.Key, nil)
	case cluster.Replace:
		fresh := make(map[cluster.Key]*cluster.Pod, len(e.Objects))
		for _, o := range e.Objects {
			fresh[o.ObjectKey()] = o.(*cluster.Pod)
		}
		for key := range r.pods {
			if fresh[key] == nil {
				r.set(key, nil)
			}
		}
		for key, p := range fresh {
			r.set(key, p)
		}
	}
}

func (r *Roster) set(key cluster.Key, p *cluster.Pod) {
	old := r.pods[key]
	if old != nil && p != nil && accountOf(old) == accountOf(p) && old.Terminal == p.Terminal {
		r.pods[key] = p
		return
	}
	if old != nil && !old.Terminal {
		a := accountOf(old)
		if r.running[a]--; r.running[a] == 0 {
			delete(r.running, a)
		}
	}
	if p == nil {
		delete(r.pods, key)
		return
	}
	r.pods[key] = p
	if !p.Terminal {
		r.running[accountOf(p)]++
	}
}

func accountOf(p *cluster.Pod) account { return account{p.Node, p.Namespace, p.ServiceAccount} }

// Pod returns the pod of that name and UID. The error wraps ErrNotFound if there is none, or another one under the name.
func (r *Roster) Pod(ctx context.Context, key cluster.Key, uid string) (*cluster.Pod, error) {
	r.mu.RLock()
	p := r.pods[key]
	r.mu.RUnlock()
	if p != nil && p.UID == uid && p.Node != "" {
		return p, nil
	}
	p, err := ask(ctx, r, "pod/"+key.String(),
		func(ctx context.Context) (*cluster.Pod, error) { return r.api.Pod(ctx, key) },
		func(p *cluster.Pod) bool { return p != nil && p.UID == uid })
	if err != nil {
		return nil, fmt.Errorf("look up pod %s: %w", key, err)
	}
	if p == nil || p.UID != uid {
		return nil, fmt.Errorf("pod %s with UID %s: %w", key, uid, ErrNotFound)
	}
	return p, nil
}

// Runs reports whether a pod of the service account is bound to the node and has not ended.
func (r *Roster) Runs(ctx context.Context, node, namespace, serviceAccount string) (bool, error) {
	want := account{node, namespace, serviceAccount}
	r.mu.RLock()
	known := r.running[want] > 0
	r.mu.RUnlock()
	if known {
		return true, nil
	}
	isRunning := func(pods []*cluster.Pod) bool {
		return slices.ContainsFunc(pods, func(p *cluster.Pod) bool { return !p.Terminal && accountOf(p) == want })
	}
	pods, err := ask(ctx, r, "node/"+node+"/"+namespace,
		func(ctx context.Context) ([]*cluster.Pod, error) { return r.api.PodsOn(ctx, node, namespace) }, isRunning)
	if err != nil {
		return false, fmt.Errorf("look up pods of namespace %s on node %s: %w", namespace, node, err)
	}
	return isRunning(pods), nil
}

// questionTimeout bounds one question to the API server.
const questionTimeout = 10 * time.Second

// ask puts a question to the API server, one at a time for all that ask the same. A shared answer may be older than this
// call; if it does not satisfy, the question is put once more.
func ask[T any](ctx context.Context, r *Roster, question string, f func(context.Context) (T, error), satisfies func(T) bool) (T, error) {
	var answer T
	for range 2 {
		if err := r.limit.Wait(ctx); err != nil {
			return answer, fmt.Errorf("too many questions to the API server: %w", err)
		}
		ch := r.calls.DoChan(question, func() (any, error) {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), questionTimeout)
			defer cancel()
			return f(ctx)
		})
		select {
		case res := <-ch:
			if res.Err != nil {
				return answer, res.Err
			}
			answer = res.Val.(T)
			if !res.Shared || satisfies(answer) {
				return answer, nil
			}
		case <-ctx.Done():
			return answer, ctx.Err()
		}
	}
	return answer, nil
}
