// Package roots keeps the trust bundle in a config map of every namespace, where node proxies and others mount it. One
// replica writes at a time; it runs while it leads, and begins by looking at everything.
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

// Writer writes the bundle. All fields are required.
type Writer struct {
	Client kubernetes.Interface
	// Name is that of the config map.
	Name string
	// Bundle returns the trust bundle in force, PEM.
	Bundle func() string
	Log    *slog.Logger
}

// Retries of a write that fails.
const (
	retryFirst = 200 * time.Millisecond
	retryMost  = 30 * time.Second
)

// Run writes until ctx ends. It may be called again after it returned.
func (w *Writer) Run(ctx context.Context) {
	queue := workqueue.NewTypedRateLimitingQueue(workqueue.NewTypedItemExponentialFailureRateLimiter[string](retryFirst, retryMost))
	defer context.AfterFunc(ctx, queue.ShutDown)()
	namespaces := informer(w.Client, w.Client.CoreV1().Namespaces(), "", &corev1.Namespace{}, trimNamespace)
	maps := informer(w.Client, w.Client.CoreV1().ConfigMaps(metav1.NamespaceAll),
		fields.OneTermEqualSelector(metav1.ObjectNameField, w.Name).String(), &corev1.ConfigMap{}, trimConfigMap)
	namespaces.AddEventHandler(handler(func(o metav1.Object) { queue.Add(o.GetName()) }))
	maps.AddEventHandler(handler(func(o metav1.Object) { queue.Add(o.GetNamespace()) }))

	done := make(chan struct{}, 2)
	for _, i := range []cache.SharedIndexInformer{namespaces, maps} {
		go func() { i.RunWithContext(ctx); done <- struct{}{} }()
	}
	if cache.WaitForCacheSync(ctx.Done(), namespaces.HasSynced, maps.HasSynced) {
		w.work(ctx, queue, namespaces.GetStore(), maps.GetStore())
	}
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
			w.Log.Warn("trust bundle not written", "namespace", name, "cause", err)
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
	bundle, client := w.Bundle(), w.Client.CoreV1().ConfigMaps(name)
	o, exists, err = maps.GetByKey(name + "/" + w.Name)
	if err != nil {
		return err
	}
	if !exists {
		_, err := client.Create(ctx, &corev1.ConfigMap{
			ObjectMeta: metav1.ObjectMeta{Name: w.Name, Labels: map[string]string{api.LabelPartOf: api.PartOf}},
			Data:       map[string]string{api.RootCertKey: bundle},
		}, metav1.CreateOptions{})
		switch {
		case apierrors.HasStatusCause(err, corev1.NamespaceTerminatingCause), apierrors.IsNotFound(err):
			return nil // the namespace is going; the watch will tell
		case err != nil:
			return fmt.Errorf("create %s: %w", w.Name, err)
		}
		return nil
	}
	if o.(*corev1.ConfigMap).Data[api.RootCertKey] == bundle {
		return nil
	}
	current, err := client.Get(ctx, w.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil // the watch will tell
	} else if err != nil {
		return fmt.Errorf("read %s: %w", w.Name, err)
	}
	if current.Data[api.RootCertKey] == bundle {
		return nil
	}
	if current.Data == nil {
		current.Data = map[string]string{}
	}
	current.Data[api.RootCertKey] = bundle
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

func trimConfigMap(o any) (any, error) {
	if m, ok := o.(*corev1.ConfigMap); ok {
		return &corev1.ConfigMap{ObjectMeta: trimMeta(m.ObjectMeta), Data: map[string]string{api.RootCertKey: m.Data[api.RootCertKey]}}, nil
	}
	return o, nil
}

func trimMeta(m metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, DeletionTimestamp: m.DeletionTimestamp}
}
