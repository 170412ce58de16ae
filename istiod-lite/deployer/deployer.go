package deployer

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/cespare/xxhash/v2"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/util/workqueue"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
	"github.com/ambit-mesh/ambit/istiod-lite/state"
	"github.com/ambit-mesh/ambit/istiod-lite/translate"
)

// Retries of what fails, and the time after which what was applied is applied again, whatever may have happened to it.
const (
	retryFirst = 500 * time.Millisecond
	retryMost  = time.Minute
	resync     = 10 * time.Minute
	// look is how often the ConfigMap of a Gateway that has one is read, and those of classes are.
	look = 10 * time.Second
)

// workers is how many Gateways are worked on at the same time.
const workers = 4

// Config configures a Deployer. All fields are required.
type Config struct {
	Client      dynamic.Interface
	Settings    Settings
	TrustDomain func() string
	// Told takes what keeps a Gateway from being deployed, zero if nothing does. It is called by several goroutines.
	Told func(ctx context.Context, key cluster.Key, fault state.DeployFault)
	Log  *slog.Logger
}

// Deployer applies. Make one with New.
type Deployer struct {
	cfg Config

	mu   sync.Mutex // guards the fields below; never held across a call
	want map[cluster.Key]translate.WaypointInput
	done map[cluster.Key]applied
	// defaults are the overlays of classes.
	defaults map[string]patches
	queue    workqueue.TypedRateLimitingInterface[cluster.Key] // nil while this replica does not lead
}

// applied is what was applied for a Gateway.
type applied struct {
	hash  uint64
	until time.Time
}

// New returns a Deployer that applies nothing until Run.
func New(cfg Config) *Deployer {
	return &Deployer{cfg: cfg, want: map[cluster.Key]translate.WaypointInput{}, done: map[cluster.Key]applied{}}
}

// Update takes Gateways as they are now. It may be called at any time and does not wait.
func (d *Deployer) Update(gateways []state.Gateway) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, g := range gateways {
		key, in := g.Key, g.WaypointInput
		if !deployed(in) {
			delete(d.want, key)
			delete(d.done, key)
			continue
		}
		d.want[key] = in
		if d.queue != nil {
			d.queue.Add(key)
		}
	}
}

// deployed reports whether a Gateway is one that something is made for: a waypoint of this control plane that does not say where it
// is already.
func deployed(in translate.WaypointInput) bool {
	return in.Gateway != nil && !in.Gateway.Deleting && len(in.Gateway.Addresses) == 0 && translate.IsWaypoint(in.Gateway, in.Class)
}

// Run applies until ctx ends. It may be called again after it returned.
func (d *Deployer) Run(ctx context.Context) {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[cluster.Key](retryFirst, retryMost))
	d.mu.Lock()
	d.queue = queue
	clear(d.done) // another replica may have led meanwhile
	for key := range d.want {
		queue.Add(key)
	}
	d.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { // here, so that the queue's own goroutine was told to end before Run returns
		<-ctx.Done()
		queue.ShutDown()
	})
	wg.Go(func() {
		// Without them waypoints would be made as if there were none, and rolled.
		for wait := retryFirst; !d.takeDefaults(ctx, queue); wait = min(2*wait, retryMost) {
			if !sleep(ctx, wait) {
				return
			}
		}
		for range workers {
			wg.Go(func() { d.work(ctx, queue) })
		}
		for sleep(ctx, look) {
			d.takeDefaults(ctx, queue)
		}
	})
	wg.Wait()
	d.mu.Lock()
	d.queue = nil
	d.mu.Unlock()
}

// takeDefaults reads the overlays of classes, and has the Gateways looked at of classes for which they are others than before. It reports
// whether they could be read; if not, those that were read before hold.
func (d *Deployer) takeDefaults(ctx context.Context, queue workqueue.TypedRateLimitingInterface[cluster.Key]) bool {
	now, err := d.readDefaults(ctx)
	if err != nil {
		if ctx.Err() == nil {
			d.cfg.Log.Warn("the defaults of classes of Gateways stay as they are", "cause", err)
		}
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	for key, in := range d.want {
		if !d.defaults[in.Gateway.Class].equal(now[in.Gateway.Class]) {
			queue.Add(key)
		}
	}
	d.defaults = now
	return true
}

// sleep waits, and reports whether ctx has not ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

func (d *Deployer) work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[cluster.Key]) {
	for {
		key, shutdown := queue.Get()
		if shutdown {
			return
		}
		fault, err := d.deploy(ctx, key)
		switch {
		case ctx.Err() != nil:
		case err != nil:
			d.cfg.Log.Warn("waypoint not deployed", "gateway", key.String(), "cause", err)
			d.cfg.Told(ctx, key, state.DeployFault{Message: err.Error()})
			queue.AddRateLimited(key)
		default:
			queue.Forget(key)
			d.cfg.Told(ctx, key, fault)
			queue.AddAfter(key, d.again(key))
		}
		queue.Done(key)
	}
}

// again is when a Gateway is to be looked at again.
func (d *Deployer) again(key cluster.Key) time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	if in, ok := d.want[key]; ok && in.Gateway.Parameters != nil {
		return look
	}
	return resync
}

// deploy applies what a Gateway needs. A fault is what only the user can mend; an error may go away.
func (d *Deployer) deploy(ctx context.Context, key cluster.Key) (fault state.DeployFault, err error) {
	d.mu.Lock()
	in, ok := d.want[key]
	done := d.done[key]
	var defaults patches
	if ok {
		defaults = d.defaults[in.Gateway.Class]
	}
	d.mu.Unlock()
	if !ok {
		return fault, nil
	}
	if why := d.cfg.Settings.Invalid(in.Gateway); why != "" {
		return state.DeployFault{Message: why}, nil
	}
	own, why, err := d.parameters(ctx, in.Gateway)
	if err != nil || why != "" {
		return state.DeployFault{Message: why, Parameters: why != ""}, err
	}
	w := waypoint{d.cfg.Settings, d.cfg.TrustDomain(), in.Gateway, defaults.scales() || own.scales()}
	objects, err := w.objects()
	if err != nil {
		return fault, err
	}
	for _, p := range []patches{defaults, own} {
		if err := p.overlay(objects); err != nil {
			return state.DeployFault{Message: err.Error(), Parameters: true}, nil
		}
	}
	hash, err := hashOf(objects)
	if err != nil {
		return fault, err
	}
	if done.hash == hash && time.Now().Before(done.until) && in.Service != nil && in.Deployment != nil {
		return fault, nil
	}
	// Nothing is made beside something that belongs to others: half a waypoint is none.
	there := make([]*unstructured.Unstructured, len(objects))
	for i, o := range objects {
		if there[i], err = d.find(ctx, o, key); err != nil {
			return fault, err
		}
	}
	for i, o := range objects {
		if err := d.apply(ctx, o, there[i], key); err != nil {
			return fault, err
		}
	}
	if err := d.removeUnwanted(ctx, objects, in.Gateway); err != nil {
		return fault, err
	}
	d.cfg.Log.Info("waypoint deployed", "gateway", key.String(), "image", d.cfg.Settings.Image)
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, still := d.want[key]; still {
		d.done[key] = applied{hash, time.Now().Add(resync)}
	}
	return fault, nil
}

// removeUnwanted deletes what was made for a Gateway by other settings and is not to be any more.
func (d *Deployer) removeUnwanted(ctx context.Context, objects []object, g *cluster.Gateway) error {
	for _, gvr := range []schema.GroupVersionResource{budgets, autoscalers} {
		if slices.ContainsFunc(objects, func(o object) bool { return o.gvr == gvr }) {
			continue
		}
		client := d.cfg.Client.Resource(gvr).Namespace(g.Namespace)
		there, err := client.Get(ctx, g.Name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) || err == nil && !owned(there, g.Name) {
			continue
		}
		if err == nil {
			uid := there.GetUID()
			err = client.Delete(ctx, g.Name, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &uid}})
		}
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("remove %s %s/%s: %w", gvr.Resource, g.Namespace, g.Name, err)
		}
	}
	return nil
}

func hashOf(objects []object) (uint64, error) {
	h := xxhash.New()
	for _, o := range objects {
		if err := json.NewEncoder(h).Encode(o.content.Object); err != nil {
			return 0, fmt.Errorf("render %s: %w", o, err)
		}
	}
	return h.Sum64(), nil
}
