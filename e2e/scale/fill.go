package scale

import (
	"context"
	"fmt"
	"io"
	"net/netip"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/yaml"

	"github.com/ambit-mesh/ambit/api"
	"github.com/ambit-mesh/ambit/deploy"
)

// fillVersion is part of a cache entry's key: raise it when other objects are made.
const fillVersion = 1

// The mesh that is filled in, besides its pods.
const (
	namespaces = 100
	nodes      = 100
	podsPer    = 10 // of a service
	zones      = 3
	// atOnce is how many requests are on their way at a time.
	atOnce = 48
)

var (
	serviceRange = netip.MustParsePrefix("10.96.0.0/12")
	firstPodIP   = netip.MustParseAddr("10.128.0.0") // up to 8 million pods
)

// pod is one by its number. Pods of one service follow each other; services go round the namespaces.
type pod int

func (p pod) service() int      { return int(p) / podsPer }
func (p pod) namespace() string { return fmt.Sprintf("space-%d", p.service()%namespaces) }
func (p pod) name() string      { return fmt.Sprintf("app-%d-5d8f7c9b64-%05d", p.service(), int(p)) }
func (p pod) app() string       { return fmt.Sprintf("app-%d", p.service()) }
func (p pod) node() string      { return fmt.Sprintf("node-%d", int(p)%nodes) }

// resource is the pod's name on the wire.
func (p pod) resource() string {
	return api.DefaultClusterID + "//Pod/" + p.namespace() + "/" + p.name()
}

func (p pod) ip() string {
	b := firstPodIP.As4()
	n := int(p) + 1
	b[1], b[2], b[3] = b[1]+byte(n>>16), byte(n>>8), byte(n)
	return netip.AddrFrom4(b).String()
}

// object is what a Deployment's pod looks like to the API server.
func (p pod) object() *corev1.Pod {
	yes := true
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Name: p.name(), Namespace: p.namespace(),
			Labels:      map[string]string{"app": p.app(), "pod-template-hash": "5d8f7c9b64"},
			Annotations: map[string]string{api.AnnotationRedirection: api.RedirectionEnabled},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "apps/v1", Kind: "ReplicaSet", Name: p.app() + "-5d8f7c9b64", Controller: &yes,
				UID: types.UID(fmt.Sprintf("00000000-0000-0000-0000-%012d", p.service())),
			}},
		},
		Spec: corev1.PodSpec{
			NodeName: p.node(), ServiceAccountName: p.app(),
			Containers: []corev1.Container{{
				Name: "app", Image: "example.com/app:1.0.0", Ports: []corev1.ContainerPort{{Name: "http", ContainerPort: 8080}},
				Env: []corev1.EnvVar{{Name: "PORT", Value: "8080"}},
			}},
		},
	}
}

// status is what a kubelet says of the pod once it runs.
func (p pod) status() corev1.PodStatus {
	now := metav1.NewTime(time.Now())
	ready := func(t corev1.PodConditionType) corev1.PodCondition {
		return corev1.PodCondition{Type: t, Status: corev1.ConditionTrue, LastTransitionTime: now}
	}
	return corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: p.ip(), PodIPs: []corev1.PodIP{{IP: p.ip()}}, StartTime: &now,
		Conditions: []corev1.PodCondition{ready(corev1.PodScheduled), ready(corev1.PodInitialized), ready(corev1.ContainersReady), ready(corev1.PodReady)},
	}
}

// filler makes objects, many at a time.
type filler struct {
	core   kubernetes.Interface
	config *rest.Config
	report io.Writer
}

func newFiller(s *server, report io.Writer) (*filler, error) {
	core, err := kubernetes.NewForConfig(s.config)
	if err != nil {
		return nil, fmt.Errorf("reach the API server: %w", err)
	}
	return &filler{core: core, config: s.config, report: report}, nil
}

// fill makes the mesh with that many pods.
func (f *filler) fill(ctx context.Context, pods int) error {
	if err := f.definitions(ctx); err != nil {
		return err
	}
	spaces := func(ctx context.Context, i int) error {
		name, labels := fmt.Sprintf("space-%d", i), map[string]string{api.LabelDataplaneMode: api.DataplaneModeAmbient}
		if i == namespaces {
			name, labels = api.DefaultNamespace, nil
		}
		_, err := f.core.CoreV1().Namespaces().Create(ctx, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}, metav1.CreateOptions{})
		return err
	}
	if err := f.each(ctx, "namespaces", namespaces+1, spaces); err != nil {
		return err
	}
	if err := f.each(ctx, "nodes", nodes, f.node); err != nil {
		return err
	}
	if err := f.each(ctx, "services", services(pods), f.service); err != nil {
		return err
	}
	return f.each(ctx, "pods", pods, func(ctx context.Context, i int) error {
		created, err := f.create(ctx, pod(i))
		if err != nil {
			return err
		}
		return f.run(ctx, pod(i), created)
	})
}

// services is how many there are for that many pods.
func services(pods int) int { return (pods + podsPer - 1) / podsPer }

// each does something for each number below n.
func (f *filler) each(ctx context.Context, what string, n int, do func(context.Context, int) error) error {
	group, working := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	start := time.Now()
	for i := range n {
		if working.Err() != nil {
			break
		}
		group.Go(func() error {
			if err := do(working, i); err != nil {
				return fmt.Errorf("fill in %s: %w", what, err)
			}
			return nil
		})
		if i > 0 && i%10_000 == 0 {
			fmt.Fprintf(f.report, "  %d of %d %s after %s\n", i, n, what, time.Since(start).Round(time.Second))
		}
	}
	if err := group.Wait(); err != nil {
		return err
	}
	return ctx.Err()
}

// definitions makes the custom resource definitions that an installed mesh has.
func (f *filler) definitions(ctx context.Context) error {
	crds, err := deploy.CRDs()
	if err != nil {
		return err
	}
	config := rest.CopyConfig(f.config)
	config.ContentType, config.AcceptContentTypes = "", ""
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	kind := client.Resource(schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1", Resource: "customresourcedefinitions"})
	return f.each(ctx, "custom resource definitions", len(crds), func(ctx context.Context, i int) error {
		var u unstructured.Unstructured
		if err := yaml.Unmarshal(crds[i], &u.Object); err != nil {
			return err
		}
		_, err := kind.Create(ctx, &u, metav1.CreateOptions{})
		return err
	})
}

func (f *filler) node(ctx context.Context, i int) error {
	n := &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("node-%d", i), Labels: map[string]string{
			corev1.LabelTopologyRegion: "region", corev1.LabelTopologyZone: fmt.Sprintf("zone-%d", i%zones),
		}},
		Status: corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: fmt.Sprintf("10.64.0.%d", i+1)}}},
	}
	_, err := f.core.CoreV1().Nodes().Create(ctx, n, metav1.CreateOptions{})
	return err
}

func (f *filler) service(ctx context.Context, i int) error {
	p := pod(i * podsPer)
	_, err := f.core.CoreV1().Services(p.namespace()).Create(ctx, &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Name: p.app(), Namespace: p.namespace()},
		Spec: corev1.ServiceSpec{
			Selector: map[string]string{"app": p.app()},
			Ports:    []corev1.ServicePort{{Name: "http", Port: 80, TargetPort: intstr.FromString("http")}},
		},
	}, metav1.CreateOptions{})
	return err
}

func (f *filler) create(ctx context.Context, p pod) (*corev1.Pod, error) {
	return f.core.CoreV1().Pods(p.namespace()).Create(ctx, p.object(), metav1.CreateOptions{})
}

// run gives a created pod what a kubelet would: it is the mesh's from then on.
func (f *filler) run(ctx context.Context, p pod, created *corev1.Pod) error {
	created.Status = p.status()
	_, err := f.core.CoreV1().Pods(p.namespace()).UpdateStatus(ctx, created, metav1.UpdateOptions{})
	return err
}

// warm waits until the API server answers watches of pods and services from its own memory, as one does that has run for a while.
func (f *filler) warm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	from := metav1.ListOptions{ResourceVersion: "0"}
	for what, open := range map[string]func() (watch.Interface, error){
		"pods":     func() (watch.Interface, error) { return f.core.CoreV1().Pods(pod(0).namespace()).Watch(ctx, from) },
		"services": func() (watch.Interface, error) { return f.core.CoreV1().Services(pod(0).namespace()).Watch(ctx, from) },
	} {
		w, err := open()
		if err != nil {
			return fmt.Errorf("watch %s: %w", what, err)
		}
		select {
		case <-w.ResultChan(): // something of before, or the stream's end
		case <-ctx.Done():
			err = fmt.Errorf("watch %s: %w", what, context.Cause(ctx))
		}
		w.Stop()
		if err != nil {
			return err
		}
	}
	return nil
}

// remove deletes a pod at once.
func (f *filler) remove(ctx context.Context, p pod) error {
	now := int64(0)
	err := f.core.CoreV1().Pods(p.namespace()).Delete(ctx, p.name(), metav1.DeleteOptions{GracePeriodSeconds: &now})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// revise gives a pod another revision, and returns it as it is then. A node proxy sees the revision.
func (f *filler) revise(ctx context.Context, p *corev1.Pod, revision string) (*corev1.Pod, error) {
	p.Labels[api.LabelCanonicalRevision] = revision
	return f.core.CoreV1().Pods(p.Namespace).Update(ctx, p, metav1.UpdateOptions{})
}
