"""Schedulers' environments. `MPIRUN` is recorded, from mpirun 4.1.4; Slurm's are what its
`src/common/env.c` sets, and the rest what the documentation of each says."""

STEP = {  # srun --nodes 4 --ntasks-per-node 1, on the third node
    "SLURM_CLUSTER_NAME": "physics",
    "SLURM_JOB_ID": "1234",
    "SLURM_JOBID": "1234",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NNODES": "4",
    "SLURM_NTASKS": "4",
    "SLURM_NPROCS": "4",
    "SLURM_STEP_ID": "0",
    "SLURM_STEPID": "0",
    "SLURM_STEP_NUM_NODES": "4",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_TASKS_PER_NODE": "1(x4)",
    "SLURM_NODEID": "2",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}
TASKS = STEP | {  # ... with two tasks on each, the second of the third node
    "SLURM_NTASKS": "8",
    "SLURM_NPROCS": "8",
    "SLURM_STEP_NUM_TASKS": "8",
    "SLURM_TASKS_PER_NODE": "2(x4)",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}
BATCH = {  # the script itself: no step
    "SLURM_JOB_ID": "1234",
    "SLURM_JOBID": "1234",
    "SLURM_JOB_NUM_NODES": "4",
    "SLURM_NNODES": "4",
    "SLURM_TASKS_PER_NODE": "1(x4)",
    "SLURM_NODEID": "0",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
}
MPIRUN = {  # mpirun -n 2, both here
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
    "OMPI_COMM_WORLD_NODE_RANK": "1",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "OMPI_MCA_ess_base_jobid": "1900216321",
    "PMIX_NAMESPACE": "1900216321",
    "PMIX_RANK": "1",
}
MPIRUN_5 = {  # mpirun of Open MPI 5, --map-by ppr:1:node
    "OMPI_COMM_WORLD_LOCAL_RANK": "0",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "1",
    "OMPI_COMM_WORLD_NODE_RANK": "0",
    "OMPI_COMM_WORLD_RANK": "1",
    "OMPI_COMM_WORLD_SIZE": "2",
    "PMIX_NAMESPACE": "prterun-gpu1-7613@1",
    "PMIX_RANK": "1",
}
POD = {"JOB_COMPLETION_INDEX": "3", "HOSTNAME": "digits-3", "KUBERNETES_SERVICE_PORT": "443"}
SING = {"SING_JOB_NAME": "bert", "SING_WORLD_SIZE": "2", "SING_RANK": "1"}
