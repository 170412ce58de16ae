package vips

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"

	"github.com/ambit-mesh/ambit/istiod-lite/cluster"
)

// retryAfter is the pause after a write that failed.
const retryAfter = time.Second

var serviceEntries = schema.GroupVersionResource{Group: "networking.istio.io", Version: "v1", Resource: "serviceentries"}

// Writer writes what Plan says. Make one with New.
type Writer struct {
	client  dynamic.Interface
	entries Entries
	log     *slog.Logger
	changed chan struct{} // has room for one
}

// Entries are the ServiceEntries as the control plane knows them.
type Entries interface {
	// All lists them, and waits until they are known.
	All(context.Context) ([]*cluster.ServiceEntry, error)
	// SetShortages says which hosts want addresses that there are not, by entry, so that the entries say so. It takes the place of
	// what was said before.
	SetShortages(context.Context, map[cluster.Key][]cluster.Shortage) error
}

// New returns a Writer that writes nothing until Run.
func New(client dynamic.Interface, entries Entries, log *slog.Logger) *Writer {
	return &Writer{client: client, entries: entries, log: log, changed: make(chan struct{}, 1)}
}

// Notify says that entries have changed. It does not wait, and may be called at any time.
func (w *Writer) Notify() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Run writes until ctx ends. It may be called again after it returned, but by one goroutine at a time. A write that fails is tried
// again after a second; a range that is exhausted is looked at again when entries change.
func (w *Writer) Run(ctx context.Context) {
	defer func() { // whoever writes next says it; nothing is lost if the program ends
		_ = w.entries.SetShortages(context.WithoutCancel(ctx), nil)
	}()
	for {
		pause := make(<-chan time.Time)
		if err := w.write(ctx); err != nil && ctx.Err() == nil {
			w.log.Warn("virtual addresses not written", "cause", err, "retry", retryAfter.String())
			pause = time.After(retryAfter)
		}
		select {
		case <-w.changed:
		case <-pause:
		case <-ctx.Done():
			return
		}
	}
}

func (w *Writer) write(ctx context.Context) error {
	entries, err := w.entries.All(ctx)
	if err != nil {
		return fmt.Errorf("list ServiceEntries: %w", err)
	}
	known := make(map[cluster.Key]*cluster.ServiceEntry, len(entries))
	for _, e := range entries {
		known[e.Key] = e
	}
	plan, shortages := Plan(entries)
	if err := w.entries.SetShortages(ctx, shortages); err != nil {
		return fmt.Errorf("tell of hosts without addresses: %w", err)
	}
	for _, a := range plan {
		if failed := w.assign(ctx, known[a.Key], a.Addresses); failed != nil {
			err = errors.Join(err, failed)
		}
	}
	return err
}

// assign writes the addresses of an entry, unless that is another now than when the plan was made: then its change is on
// the way.
func (w *Writer) assign(ctx context.Context, planned *cluster.ServiceEntry, addresses []cluster.HostAddr) error {
	client := w.client.Resource(serviceEntries).Namespace(planned.Namespace)
	current, err := client.Get(ctx, planned.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	} else if err != nil {
		return fmt.Errorf("read ServiceEntry %s: %w", planned.Key, err)
	}
	now := cluster.ServiceEntryOf(current)
	if now.WantsAddresses() != planned.WantsAddresses() || !slices.Equal(now.Hosts, planned.Hosts) || !slices.Equal(now.Assigned, planned.Assigned) {
		return nil
	}
	list := make([]map[string]string, 0, len(addresses))
	for _, a := range addresses {
		list = append(list, map[string]string{"value": a.Addr.String(), "host": a.Host})
	}
	patch, err := json.Marshal(map[string]any{
		"metadata": map[string]any{"resourceVersion": current.GetResourceVersion()}, // or somebody wrote meanwhile
		"status":   map[string]any{"addresses": list},
	})
	if err != nil {
		return fmt.Errorf("write addresses of ServiceEntry %s: %w", planned.Key, err)
	}
	_, err = client.Patch(ctx, planned.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("write addresses of ServiceEntry %s: %w", planned.Key, err)
	}
	return nil
}
