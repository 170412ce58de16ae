package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/record"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/cni/enrolment"
	"github.com/ambit-mesh/ambit/cni/resolver"
)

// Errors of a Cluster.
var (
	// ErrPodGone says that the pod does not exist any more, though another one of its name may.
	ErrPodGone = errors.New("pod is gone")
	// errNotSynced says that the context ended before the API had told of all objects.
	errNotSynced = errors.New("the API did not tell of all pods, namespaces and the agent's DaemonSet")
)

// AnnotationRelease is an annotation on the agent's own DaemonSet: an Order to all agents.
const AnnotationRelease = "ambit/release"

// annotationStaticUID is on the API's image of a static pod and names the UID under which kubelet runs it.
const annotationStaticUID = "kubernetes.io/config.hash"

// Cluster is the agent's access to the Kubernetes API. Methods other than Watch may be called at once.
type Cluster struct {
	Client kubernetes.Interface
	// NodeName is the node whose pods count; Namespace and DaemonSet are where the agent's own DaemonSet is.
	NodeName, Namespace, DaemonSet string
	// Events records what is said on pods.
	Events record.EventRecorder
}

// Watch follows the node's pods, all namespaces and the agent's DaemonSet, and posts every change until the context ends.
// It returns once all that exists has been posted.
func (c Cluster) Watch(ctx context.Context, mail *mailbox) error {
	factory := func(namespace string, selector fields.Selector) informers.SharedInformerFactory {
		return informers.NewSharedInformerFactoryWithOptions(c.Client, 0, informers.WithNamespace(namespace),
			informers.WithTweakListOptions(func(o *metav1.ListOptions) { o.FieldSelector = selector.String() }))
	}
	pods := factory("", fields.OneTermEqualSelector("spec.nodeName", c.NodeName))
	namespaces := factory("", fields.Everything())
	own := factory(c.Namespace, fields.OneTermEqualSelector("metadata.name", c.DaemonSet))
	var synced []cache.InformerSynced
	for _, w := range []struct {
		informer cache.SharedIndexInformer
		trim     cache.TransformFunc
		changed  func(obj any, deleted bool)
	}{
		{pods.Core().V1().Pods().Informer(), trimPod, func(o any, deleted bool) { c.pod(o.(*corev1.Pod), deleted, mail) }},
		{namespaces.Core().V1().Namespaces().Informer(), trimNamespace, func(o any, deleted bool) {
			n := o.(*corev1.Namespace)
			mail.post(namespaceChanged{n.Name, n.Labels, deleted})
		}},
		{own.Apps().V1().DaemonSets().Informer(), trimDaemonSet, func(o any, deleted bool) { c.daemonSet(o.(*appsv1.DaemonSet), deleted, mail) }},
	} {
		if err := w.informer.SetTransform(w.trim); err != nil {
			return fmt.Errorf("watch the API: %w", err)
		}
		registration, err := w.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
			AddFunc:    func(o any) { w.changed(o, false) },
			UpdateFunc: func(_, o any) { w.changed(o, false) },
			DeleteFunc: func(o any) {
				if unknown, ok := o.(cache.DeletedFinalStateUnknown); ok {
					o = unknown.Obj
				}
				w.changed(o, true)
			},
		})
		if err != nil {
			return fmt.Errorf("watch the API: %w", err)
		}
		synced = append(synced, registration.HasSynced)
	}
	for _, f := range []informers.SharedInformerFactory{pods, namespaces, own} {
		f.StartWithContext(ctx)
	}
	if !cache.WaitForCacheSync(ctx.Done(), synced...) {
		return errNotSynced
	}
	return nil
}

// The informers keep only what is used: a node has hundreds of pods and a cluster thousands of namespaces.

func trimMeta(m *metav1.ObjectMeta, labels, annotations []string) {
	keep := func(all map[string]string, keys []string) map[string]string {
		out := maps.Clone(all)
		maps.DeleteFunc(out, func(k, _ string) bool { return !slices.Contains(keys, k) })
		return out
	}
	*m = metav1.ObjectMeta{
		Name: m.Name, Namespace: m.Namespace, UID: m.UID, ResourceVersion: m.ResourceVersion, DeletionTimestamp: m.DeletionTimestamp,
		Labels: keep(m.Labels, labels), Annotations: keep(m.Annotations, annotations),
	}
}

func trimPod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	trimMeta(&p.ObjectMeta, []string{api.LabelDataplaneMode},
		[]string{api.AnnotationRedirection, api.AnnotationBypassInbound, api.AnnotationDNSCapture, api.AnnotationSidecarStatus,
			annotationStaticUID})
	p.Spec = corev1.PodSpec{NodeName: p.Spec.NodeName, ServiceAccountName: p.Spec.ServiceAccountName, HostNetwork: p.Spec.HostNetwork,
		DNSPolicy: p.Spec.DNSPolicy, DNSConfig: p.Spec.DNSConfig}
	p.Status = corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP, PodIPs: p.Status.PodIPs}
	return p, nil
}

func trimNamespace(o any) (any, error) {
	n, ok := o.(*corev1.Namespace)
	if !ok {
		return o, nil
	}
	trimMeta(&n.ObjectMeta, []string{api.LabelDataplaneMode}, nil)
	n.Spec, n.Status = corev1.NamespaceSpec{}, corev1.NamespaceStatus{}
	return n, nil
}

func trimDaemonSet(o any) (any, error) {
	d, ok := o.(*appsv1.DaemonSet)
	if !ok {
		return o, nil
	}
	trimMeta(&d.ObjectMeta, nil, []string{AnnotationRelease})
	d.Spec, d.Status = appsv1.DaemonSetSpec{}, appsv1.DaemonSetStatus{}
	return d, nil
}

func (c Cluster) pod(p *corev1.Pod, deleted bool, mail *mailbox) {
	switch {
	case p.Spec.NodeName != c.NodeName:
	case deleted:
		mail.post(podDeleted{string(p.UID)})
	default:
		mail.post(podChanged{podOf(p)})
	}
}

func (c Cluster) daemonSet(d *appsv1.DaemonSet, deleted bool, mail *mailbox) {
	if d.Name != c.DaemonSet || d.Namespace != c.Namespace {
		return
	}
	order := Serve
	switch o := Order(d.Annotations[AnnotationRelease]); o {
	case Drain, Now:
		order = o
	}
	mail.post(orderChanged{order: order, gone: deleted || d.DeletionTimestamp != nil})
}

func podOf(p *corev1.Pod) Pod {
	out := Pod{
		UID: string(p.UID), Namespace: p.Namespace, Name: p.Name, ServiceAccount: p.Spec.ServiceAccountName,
		LocalUID: p.Annotations[annotationStaticUID], Redirection: p.Annotations[api.AnnotationRedirection],
		DNS: resolver.Wish{Policy: p.Spec.DNSPolicy, Config: p.Spec.DNSConfig},
		Enrolment: enrolment.Pod{
			Namespace: p.Namespace, Labels: p.Labels, Annotations: p.Annotations, HostNetwork: p.Spec.HostNetwork,
			Ended: p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed,
		},
	}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out.IPs = append(out.IPs, a)
		}
	}
	return out
}

// Look reads a pod and its namespace's labels from the API itself. ErrPodGone if there is no such pod.
func (c Cluster) Look(ctx context.Context, namespace, name string) (Pod, map[string]string, error) {
	p, err := c.Client.CoreV1().Pods(namespace).Get(ctx, name, metav1.GetOptions{})
	if isGone(err) {
		return Pod{}, nil, fmt.Errorf("read pod %s/%s: %w: %w", namespace, name, ErrPodGone, err)
	}
	if err != nil {
		return Pod{}, nil, fmt.Errorf("read pod %s/%s: %w", namespace, name, err)
	}
	n, err := c.Client.CoreV1().Namespaces().Get(ctx, namespace, metav1.GetOptions{})
	if err != nil {
		return Pod{}, nil, fmt.Errorf("read namespace %s: %w", namespace, err)
	}
	return podOf(p), n.Labels, nil
}

// Annotate sets the pod's status annotation, or removes it if the value is empty. ErrPodGone if the pod is.
func (c Cluster) Annotate(ctx context.Context, p Pod, value string) error {
	var v any
	if value != "" {
		v = value
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": p.UID, "annotations": map[string]any{api.AnnotationRedirection: v},
	}})
	if err != nil {
		return err
	}
	_, err = c.Client.CoreV1().Pods(p.Namespace).Patch(ctx, p.Name, types.MergePatchType, patch, metav1.PatchOptions{}, "status")
	switch {
	case isGone(err), apierrors.IsConflict(err), apierrors.IsInvalid(err):
		// With the UID in the patch, a pod of the same name that came after is a conflict.
		return fmt.Errorf("annotate pod %s/%s: %w: %w", p.Namespace, p.Name, ErrPodGone, err)
	case err != nil:
		return fmt.Errorf("annotate pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	return nil
}

// Warn says something on a pod, where `kubectl describe` shows it. It does not block.
func (c Cluster) Warn(p Pod, reason, message string) {
	c.Events.Event(&corev1.ObjectReference{
		APIVersion: "v1", Kind: "Pod", Namespace: p.Namespace, Name: p.Name, UID: types.UID(p.UID),
	}, corev1.EventTypeWarning, reason, message)
}

// isGone tells whether the API says that what was asked for is not there. Who answers 404 in its place, such as a load balancer, says
// nothing about it.
func isGone(err error) bool {
	return apierrors.IsNotFound(err) && !apierrors.IsUnexpectedServerError(err)
}

// Doomed says whether the agent's DaemonSet is surely deleted: by what the API says now, since it may have been made anew, or else by
// whether its deletion was seen. Without either it is not: what is left in place by mistake fails closed.
func (c Cluster) Doomed(ctx context.Context, seen bool) bool {
	d, err := c.Client.AppsV1().DaemonSets(c.Namespace).Get(ctx, c.DaemonSet, metav1.GetOptions{})
	switch {
	case isGone(err):
		return true
	case err != nil:
		return seen
	}
	return d.DeletionTimestamp != nil
}
