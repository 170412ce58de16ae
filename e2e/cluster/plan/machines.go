package plan

import (
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/ambit-mesh/ambit/e2e/cluster/boot"
)

// nodeDirs are the folders that are a node's own, by the name of the folder on its disk. Programs on a node and the
// host paths of its pods use the right-hand side.
func nodeDirs() [][2]string {
	return [][2]string{
		{"etc-cni", "/etc/cni"},
		{"opt-cni", "/opt/cni"},
		{"kubelet", "/var/lib/kubelet"},
		{"containerd", "/var/lib/containerd"},
		{"cni", "/var/lib/cni"},
		{"ambit", "/var/lib/ambit"},
		{"log-pods", "/var/log/pods"},
		{"log-containers", "/var/log/containers"},
	}
}

// MountPoints are the folders that must exist on the machine for a node's own to be shown there.
func MountPoints() []string {
	var out []string
	for _, d := range nodeDirs() {
		out = append(out, d[1])
	}
	return out
}

// ControlPlaneSpec is the machine that runs etcd, API server, controller manager and scheduler.
func (p Plan) ControlPlaneSpec(cgroups []string) boot.Spec {
	secret := func(name string) string { return filepath.Join(p.Secrets(), name) }
	api := []string{"tcp:" + p.apiAddress()}
	service := func(name string, after []string, args ...string) boot.Service {
		return boot.Service{
			Name:  name,
			Args:  append([]string{filepath.Join(p.BinDir, name)}, args...),
			Log:   filepath.Join(p.Logs(ControlPlane), name+".log"),
			After: after,
		}
	}
	return boot.Spec{
		Hostname: ControlPlane,
		Cgroups:  cgroups,
		Services: []boot.Service{
			service("etcd", nil,
				"--name=cp", "--data-dir="+filepath.Join(p.Disk(ControlPlane), "etcd"),
				"--listen-client-urls=http://127.0.0.1:2379", "--advertise-client-urls=http://127.0.0.1:2379",
				"--listen-peer-urls=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380",
				"--initial-cluster=cp=http://127.0.0.1:2380",
				"--unsafe-no-fsync", // a cluster for tests need not outlive the machine's own power cut
				"--log-level=warn"),
			service("kube-apiserver", []string{"tcp:127.0.0.1:2379"},
				"--advertise-address="+p.API.String(), "--bind-address="+p.Unspecified().String(), fmt.Sprintf("--secure-port=%d", apiPort),
				"--etcd-servers=http://127.0.0.1:2379",
				"--service-cluster-ip-range="+join(p.ServiceRanges),
				"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
				"--anonymous-auth=true",
				"--client-ca-file="+secret("ca.crt"),
				"--tls-cert-file="+secret("apiserver.crt"), "--tls-private-key-file="+secret("apiserver.key"),
				"--kubelet-client-certificate="+secret("apiserver-kubelet.crt"), "--kubelet-client-key="+secret("apiserver-kubelet.key"),
				"--kubelet-certificate-authority="+secret("ca.crt"),
				"--kubelet-preferred-address-types=InternalIP",
				"--service-account-issuer=https://kubernetes.default.svc."+Domain,
				"--service-account-key-file="+secret("token.pub"), "--service-account-signing-key-file="+secret("token.key"),
				"--requestheader-client-ca-file="+secret("front-ca.crt"), "--requestheader-allowed-names=front-proxy",
				"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group",
				"--requestheader-username-headers=X-Remote-User",
				"--proxy-client-cert-file="+secret("front-proxy.crt"), "--proxy-client-key-file="+secret("front-proxy.key"),
				// No kube-proxy runs beside the API server, so it reaches webhooks and API services by their endpoints.
				"--enable-aggregator-routing=true"),
			service("kube-controller-manager", api,
				"--kubeconfig="+secret("controller-manager.conf"), "--use-service-account-credentials=true",
				"--leader-elect=false", "--allocate-node-cidrs=false",
				// Its start is hundreds of small requests, which its own limit of 20 a second would stretch to many seconds.
				"--kube-api-qps=500", "--kube-api-burst=1000",
				"--cluster-cidr="+join(p.PodRanges),
				"--service-cluster-ip-range="+join(p.ServiceRanges),
				"--root-ca-file="+secret("ca.crt"), "--service-account-private-key-file="+secret("token.key"),
				"--cluster-signing-cert-file="+secret("ca.crt"), "--cluster-signing-key-file="+secret("ca.key"),
				"--flex-volume-plugin-dir="+filepath.Join(p.Disk(ControlPlane), "volume-plugins"), // it would make the default on the machine
				"--bind-address=127.0.0.1"),
			service("kube-scheduler", api,
				"--kubeconfig="+secret("scheduler.conf"), "--leader-elect=false", "--bind-address=127.0.0.1"),
		},
	}
}

// NodeSpec is a Kubernetes node. The boot ID must be new for every start, as the kernel's own would be.
func (p Plan) NodeSpec(n Node, cgroups []string, bootID string) boot.Spec {
	disk := p.Disk(n.Name)
	config := func(name string) string { return filepath.Join(disk, "config", name) }
	log := func(name string) string { return filepath.Join(p.Logs(n.Name), name+".log") }
	api := "tcp:" + p.apiAddress()
	s := boot.Spec{
		Hostname: n.Name,
		Cgroups:  cgroups,
		Files: []boot.File{
			{To: "/proc/sys/kernel/random/boot_id", Content: bootID + "\n"},
			{To: "/etc/machine-id", Content: machineID(n.Name) + "\n"},
		},
		Services: []boot.Service{
			{
				Name: "containerd",
				Args: []string{filepath.Join(p.BinDir, "containerd"), "--config", config("containerd.toml")},
				Env:  []string{"PATH=" + p.BinDir + ":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
				Log:  log("containerd"),
			},
			{
				Name: "kubelet",
				Args: []string{filepath.Join(p.BinDir, "kubelet"),
					"--config=" + config("kubelet.yaml"), "--kubeconfig=" + config("kubelet.conf"),
					"--hostname-override=" + n.Name, "--node-ip=" + join(n.Addresses),
					"--node-labels=topology.kubernetes.io/region=region1,topology.kubernetes.io/zone=" + n.Zone},
				Log:   log("kubelet"),
				After: []string{"unix:/run/containerd/containerd.sock", api},
			},
			{
				Name:  "kube-proxy",
				Args:  []string{filepath.Join(p.BinDir, "kube-proxy"), "--config=" + config("kube-proxy.yaml")},
				Log:   log("kube-proxy"),
				After: []string{api},
			},
		},
	}
	for _, d := range nodeDirs() {
		s.Dirs = append(s.Dirs, boot.Bind{From: filepath.Join(disk, d[0]), To: d[1]})
	}
	return s
}

// machineID gives every node its own stable ID (machine-id(5): 32 hexadecimal digits).
func machineID(node string) string { return fmt.Sprintf("%032x", "ambit/"+node) }

// join lists addresses or networks the way Kubernetes' flags want them.
func join[T netip.Addr | netip.Prefix](list []T) string {
	var out []string
	for _, e := range list {
		out = append(out, fmt.Sprint(e))
	}
	return strings.Join(out, ",")
}
