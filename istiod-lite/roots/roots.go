// Package roots keeps what verifiers need (the trust bundle, revocation lists) in a config map of every namespace, where node
// proxies and others mount it. One replica writes at a time; it runs while it leads, and begins by looking at everything.
package roots

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"

	"github.com/ambit-mesh/ambit/api"
)

// Config is what a Writer is made of. All fields are required.
type Config struct {
	Client kubernetes.Interface
	// Name is that of the config map, and Key that of the text in it.
	Name, Key string
	// Text returns what is to be there, and whether anything is: if not, config maps are left as they are.
	Text func() (text string, ok bool)
	Log  *slog.Logger
}

// Writer writes one text into every namespace. Make it with NewWriter.
type Writer struct {
	Config
	changed chan struct{} // capacity 1
}

// NewWriter makes a Writer that does nothing until Run.
func NewWriter(c Config) *Writer { return &Writer{Config: c, changed: make(chan struct{}, 1)} }

// Changed has Run look at the text again. It never blocks.
func (w *Writer) Changed() {
	select {
	case w.changed <- struct{}{}:
	default:
	}
}

// Retries of a write that fails.
const (
	retryFirst = 200 * time.Millisecond
	retryMost  = 30 * time.Second
)

// Run writes until ctx ends. It may be called again after it returned.
func (w *Writer) Run(ctx context.Context) {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryFirst, retryMost))
	namespaces := informer(w.Client, w.Client.CoreV1().Namespaces(), "", &corev1.Namespace{}, trimNamespace)
	maps := informer(w.Client, w.Client.CoreV1().ConfigMaps(metav1.NamespaceAll),
		fields.OneTermEqualSelector(metav1.ObjectNameField, w.Name).String(), &corev1.ConfigMap{}, w.trim)
	namespaces.AddEventHandler(handler(func(o metav1.Object) { queue.Add(o.GetName()) }))
	maps.AddEventHandler(handler(func(o metav1.Object) { queue.Add(o.GetNamespace()) }))

	done := make(chan struct{}, 3)
	go func() {
		defer func() { done <- struct{}{} }()
		defer queue.ShutDown() // here, since Run waits for it: also when it ends before it works
		for {
			select {
			case <-w.changed:
				for _, name := range namespaces.GetStore().ListKeys() {
					queue.Add(name)
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	for _, i := range []cache.SharedIndexInformer{namespaces, maps} {
		go func() { i.RunWithContext(ctx); done <- struct{}{} }()
	}
	if cache.WaitForCacheSync(ctx.Done(), namespaces.HasSynced, maps.HasSynced) {
		w.work(ctx, queue, namespaces.GetStore(), maps.GetStore())
	}
	<-done
	<-done
	<-done
}

// work reconciles namespaces until the queue is shut down.
func (w *Writer) work(ctx context.Context, queue workqueue.TypedRateLimitingInterface[string], namespaces, maps cache.Store) {
	for {
		name, shutdown := queue.Get()
		if shutdown {
			return
		}
		if err := w.reconcile(ctx, name, namespaces, maps); err != nil && ctx.Err() == nil {
			w.Log.Warn("config map not written", "namespace", name, "name", w.Name, "cause", err)
			queue.AddRateLimited(name)
		} else {
			queue.Forget(name)
		}
		queue.Done(name)
	}
}

// reconcile makes the config map of a namespace what it must be. Only our key is ours.
func (w *Writer) reconcile(ctx context.Context, name string, namespaces, maps cache.Store) error {
	o, exists, err := namespaces.GetByKey(name)
	if err != nil || !exists {
		return err
	}
	if ns := o.(*corev1.Namespace); ns.DeletionTimestamp != nil || ns.Status.Phase == corev1.NamespaceTerminating {
		return nil
	}
	text, ok := w.Text()
	if !ok {
		return nil
	}
	client := w.Client.CoreV1().ConfigMaps(name)
	o, exists, err = maps.GetByKey(name + "/" + w.Name)
	if err != nil {
		return err
	}
	if !exists {
		_, err := client.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: w.Name, Labels: map[string]string{api.LabelPartOf: api.PartOf}},
			Data:       map[string]string{w.Key: text},
		}, metav1.CreateOptions{})
		switch {
		case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), apierrors.IsNotFound(err):
			return nil // the namespace is going; the watch will tell
		case err != nil:
			return fmt.Errorf("create %s: %w", w.Name, err)
		}
		return nil
	}
	if there, ok := o.(*corev1.ConfigMap).Data[w.Key]; ok && there == text {
		return nil
	}
	current, err := client.Get(ctx, w.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // the watch will tell
	} else if err != nil {
		return fmt.Errorf("read %s: %w", w.Name, err)
	}
	if there, ok := current.Data[w.Key]; ok && there == text {
		return nil
	}
	if current.Data == nil {
		current.Data = map[string]string{}
	}
	current.Data[w.Key] = text
	if _, err := client.Update(ctx, current, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update %s: %w", w.Name, err)
	}
	return nil
}

// lister is what the typed clients of a kind have in common.
type lister[L runtime.Object] interface {
	List(context.Context, metav1.ListOptions) (L, error)
	Watch(context.Context, metav1.ListOptions) (watch.Interface, error)
}

func informer[L runtime.Object](client any, c lister[L], selector string, example runtime.Object, trim cache.TransformFunc) cache.SharedIndexInformer {
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, opts metav1.ListOptions) (runtime.Object, error) {
			opts.FieldSelector = selector
			return c.List(ctx, opts)
		},
		WatchFuncWithContext: func(ctx context.Context, opts metav1.ListOptions) (watch.Interface, error) {
			opts.FieldSelector = selector
			return c.Watch(ctx, opts)
		},
	}
	i := cache.NewSharedIndexInformerWithOptions(cache.ToListWatcherWithWatchListSemantics(lw, client), example, cache.SharedIndexInformerOptions{})
	if err := i.SetTransform(trim); err != nil {
		panic(err) // it fails for an informer that runs, and this one does not
	}
	return i
}

func handler(f func(metav1.Object)) cache.ResourceEventHandlerFuncs {
	object := func(o any) {
		if tombstone, ok := o.(cache.DeletedFinalStateUnknown); ok {
			o = tombstone.Obj
		}
		if m, ok := o.(metav1.Object); ok {
			f(m)
		}
	}
	return cache.ResourceEventHandlerFuncs{AddFunc: object, UpdateFunc: func(_, o any) { object(o) }, DeleteFunc: object}
}

func trimNamespace(o any) (any, error) {
	if n, ok := o.(*corev1.Namespace); ok {
		return &corev1.Namespace{ObjectMeta: trimMeta(n.ObjectMeta), Status: corev1.NamespaceStatus{Phase: n.Status.Phase}}, nil
	}
	return o, nil
}

func (w *Writer) trim(o any) (any, error) {
	m, ok := o.(*corev1.ConfigMap)
	if !ok {
		return o, nil
	}
	trimmed := &corev1.ConfigMap{ObjectMeta: trimMeta(m.ObjectMeta)}
	if text, ok := m.Data[w.Key]; ok {
		trimmed.Data = map[string]string{w.Key: text}
	}
	return trimmed, nil
}

func trimMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, DeletionTimestamp: m.DeletionTimestamp}
}
