package status

import (
	"context"
	"log/slog"
	"sync"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/util/workqueue"
)

// pending are objects that may have to be written, while this replica leads.
type pending[K comparable] struct {
	queue workqueue.TypedRateLimitingInterface[K] // nil while it does not
}

// add takes note of an object. The caller holds the lock that guards p.
func (p *pending[K]) add(k K) {
	if p.queue != nil {
		p.queue.Add(k)
	}
}

// run writes until ctx ends. mu guards p and what all lists, which is what there is to be written at first.
func (p *pending[K]) run(ctx context.Context, mu *sync.Mutex, all func() []K, write func(context.Context, K) error, log *slog.Logger) {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[K](retryFirst, retryMost))
	mu.Lock()
	p.queue = queue
	for _, k := range all() {
		queue.Add(k)
	}
	mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { // here, so that the queue's own goroutine was told to end before run returns
		<-ctx.Done()
		queue.ShutDown()
	})
	for range writers {
		wg.Go(func() { work(ctx, queue, write, log) })
	}
	wg.Wait()
	mu.Lock()
	p.queue = nil
	mu.Unlock()
}

func work[K comparable](ctx context.Context, queue workqueue.TypedRateLimitingInterface[K], write func(context.Context, K) error, log *slog.Logger) {
	for {
		k, shutdown := queue.Get()
		if shutdown {
			return
		}
		switch err := write(ctx, k); {
		case err == nil || ctx.Err() != nil:
			queue.Forget(k)
		default:
			if !apierrors.IsConflict(err) { // somebody else wrote meanwhile
				log.Warn("status not written", "cause", err)
			}
			queue.AddRateLimited(k)
		}
		queue.Done(k)
	}
}
